"""The two graphs by every runtime there is, beside the same weights exported the official way.

Ours: branches folded, bicubic up-sampling as fixed convolutions, cells never projected. Official:
batch norms folded by the exporter, branches kept, bilinear Resize; stability scores in the decoder;
ONNX Runtime. Speed does not depend on the weights: the default bundle's are taken where it is
there. What reduced precision and left-out padding cost in mask quality is loss.py's part.

The encoder's rate stands beside the best of three 2048 x 2048 matrix products by the same runtime.

Needs PyTorch, to export the peer.

    python -m bench encode
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from bench.timing import alternate, seconds
from edgesam_core import openvino_session
from edgesam_core.bundle import Bundle, find_bundle
from edgesam_core.errors import BundleError
from edgesam_core.export.decoder import export_decoder
from edgesam_core.export.encoder import encoder_graph, export_encoder
from edgesam_core.export.official import export_official
from edgesam_core.nn.checkpoint import load_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.session import Runtime, Session, open_session, run_graph

OFFICIAL_SIZE = 1024
REPEATS = 15
"""At the official size; smaller inputs, whose times scatter more, are run more often."""
MODELS_DIR = Path(__file__).resolve().parent.parent / "models"

GOALS = {
    ("encoder", "onnxruntime"): 1.0,
    ("encoder", "openvino"): 0.62,
    ("encoder", "openvino-bf16"): 0.28,
    ("encoder 4:3", "openvino-bf16"): 0.21,
    ("decoder", "onnxruntime"): 1.0,
}
"""Largest share of the official export's time, at the official size. At any other size nothing has
to be faster than that; small graphs consist of small operations, which no runtime is fast at."""

MATRIX_SIDE = 2048

Inputs = Mapping[str, npt.NDArray[np.float32]]


def run() -> list[dict[str, Any]]:
    """Time encoder and decoder at the official size and at that of the default bundle.

    Returns:
        One row per graph, runtime and size, as ``bench/__main__.py`` describes them.
    """
    model, sizes = EdgeSam().eval(), {OFFICIAL_SIZE}
    try:
        bundle = Bundle.open(find_bundle("default", MODELS_DIR))
    except BundleError:
        pass  # not trained yet
    else:
        sizes.add(bundle.manifest.input_size)
        model.draws_prompts = bundle.manifest.draws_prompts
        if bundle.weights_path is not None:
            load_state_dict(model, read_checkpoint(bundle.weights_path))
    return [row for size in sorted(sizes, reverse=True) for row in _rows(model, size)]


def runtimes() -> list[Runtime]:
    """The runtimes that this machine can use."""
    capabilities = openvino_session.capabilities()
    found: list[Runtime] = ["onnxruntime"]
    if capabilities:
        found.append("openvino")
    if "BF16" in capabilities:
        found.append("openvino-bf16")
    return found


def _rows(model: EdgeSam, size: int) -> list[dict[str, Any]]:
    """Both graphs at one input size."""
    inputs = _inputs(size)
    landscape = np.ascontiguousarray(inputs["image"][:, :, : size * 3 // 4])
    rows = []
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        encoder, any_size, decoder = (folder / name for name in ("e.onnx", "any.onnx", "d.onnx"))
        export_encoder(model, encoder, input_size=size)
        export_encoder(model, any_size, input_size=size, leaves_out_padding=True)
        export_decoder(model, decoder, input_size=size)
        official = export_official(model, folder, input_size=size)
        work = [
            ("encoder", encoder, inputs, official[0], runtimes()),
            ("encoder 4:3", any_size, {**inputs, "image": landscape}, official[0], runtimes()),
            ("decoder", decoder, inputs, official[1], runtimes()),
        ]
        for part, path, given, peer, names in work:
            calls = {name: _call(open_session(path, runtime=name), given) for name in names}
            peer_call = _call(open_session(peer), inputs)
            peer_times, *ours_times = alternate(
                [peer_call, *calls.values()], REPEATS * OFFICIAL_SIZE // size, warm_up=2
            )
            for name, taken in zip(names, ours_times, strict=True):
                rows.append({
                    "name": f"{part}, {name}, S={size}",
                    "ours_ms": taken.median_ms,
                    "p95_ms": taken.p95_ms,
                    "peer_ms": peer_times.median_ms,
                    "peer": "official export, ONNX Runtime",
                    "goal": GOALS.get((part, name)) if size == OFFICIAL_SIZE else None,
                    "input_size": size,
                    "runtime": name,
                })  # fmt: skip
                if part == "encoder":
                    rows[-1] |= _rate(model, size, taken.median_ms, name, folder)
    return rows


def _rate(
    model: EdgeSam, size: int, taken_ms: float, runtime: Runtime, folder: Path
) -> dict[str, Any]:
    """Achieved GFLOP/s, and what plain matrix products achieve on this machine now."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder_graph(model)(torch.zeros(1, 3, size, size))
    achieved = counter.get_total_flops() / taken_ms / 1e6
    possible = _matrix_rate(folder / "product.onnx", runtime)
    note = f"{achieved:.0f} GFLOP/s; a matrix product reaches {possible:.0f}"
    return {"gflops": achieved, "gflops_of_product": possible, "note": note}


def _matrix_rate(path: Path, runtime: Runtime) -> float:
    """GFLOP/s of the best of three products, after one that warms up."""
    random = np.random.default_rng(0)
    left, right = random.standard_normal((2, MATRIX_SIDE, MATRIX_SIDE), np.float32)
    shape = [MATRIX_SIDE, MATRIX_SIDE]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(right, "right")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    call = _call(open_session(path, runtime=runtime), {"left": left}, ["product"])
    call()
    return 2 * MATRIX_SIDE**3 / min(seconds(call) for _ in range(3)) / 1e9


def _inputs(size: int) -> Inputs:
    """What either graph may ask for: noise, and one click with its padding point."""
    random = np.random.default_rng(0)
    cells = size // 16
    return {
        "image": random.standard_normal((1, 3, size, size), np.float32),
        "image_embeddings": random.standard_normal((1, 256, cells, cells), np.float32),
        "point_coords": np.array([[[size / 2, size / 3], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 4 * cells, 4 * cells), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }


def _call(
    session: Session, inputs: Inputs, outputs: Sequence[str] | None = None
) -> Callable[[], object]:
    """One run of a graph with the inputs that it takes; ``outputs`` are those of its part."""
    taken = {name: inputs[name] for name in session.inputs}
    if outputs is None:
        is_official = "point_coords" in taken and "mask_input" not in taken
        decoded = ["scores", "masks"] if is_official else ["low_res_logits", "iou_predictions"]
        outputs = ["image_embeddings"] if "image" in taken else decoded
    return partial(run_graph, session, taken, outputs)
