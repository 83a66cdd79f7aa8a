"""The two graphs through ONNX Runtime, beside the same weights exported the official way.

Ours: branches folded, bicubic up-sampling as fixed convolutions, cells never projected. Official:
batch norms folded by the exporter, branches kept, bilinear Resize; stability scores in the decoder.
Calls alternate, so that a busy machine slows both; medians are reported and ratios judged. Speed
does not depend on the weights: the default bundle's are taken where it is there, else random ones.

Needs PyTorch, to export the peer.

    python -m bench encode
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgesam_core.bundle import Bundle, find_bundle
from edgesam_core.errors import BundleError
from edgesam_core.export.decoder import export_decoder
from edgesam_core.export.encoder import export_encoder
from edgesam_core.export.official import export_official
from edgesam_core.nn.checkpoint import load_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.session import open_session

OFFICIAL_SIZE = 1024
REPEATS = 15
"""At the official size; smaller inputs, whose times scatter more, are run more often."""
MODELS_DIR = Path(__file__).resolve().parent.parent / "models"
LIMIT = 1.0
"""Ours must not be slower than the official export, although its up-sampling is the dearer one."""

Inputs = Mapping[str, npt.NDArray[np.float32]]


def run() -> list[dict[str, Any]]:
    """Time encoder and decoder at the official size and at that of the default bundle.

    Returns:
        One row per graph and size, as ``bench/__main__.py`` describes them.
    """
    model, sizes = EdgeSam().eval(), {OFFICIAL_SIZE}
    try:
        bundle = Bundle.open(find_bundle("default", MODELS_DIR))
    except BundleError:
        pass  # not trained yet
    else:
        sizes.add(bundle.manifest.input_size)
        if bundle.weights_path is not None:
            load_state_dict(model, read_checkpoint(bundle.weights_path))
    return [row for size in sorted(sizes, reverse=True) for row in _rows(model, size)]


def _rows(model: EdgeSam, size: int) -> list[dict[str, Any]]:
    """Both graphs at one input size."""
    inputs = _inputs(size)
    rows = []
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        ours = {"encoder": folder / "encoder.onnx", "decoder": folder / "decoder.onnx"}
        export_encoder(model, ours["encoder"], input_size=size)
        export_decoder(model, ours["decoder"], input_size=size)
        official = export_official(model, folder, input_size=size)
        work = {"encoder": "one image", "decoder": "one click"}
        for (part, path), peer in zip(ours.items(), official, strict=True):
            repeats = REPEATS * OFFICIAL_SIZE // size
            ours_ms, peer_ms = _alternate(_call(path, inputs), _call(peer, inputs), repeats)
            rows.append(
                {
                    "name": f"{part}, {work[part]}, S={size}",
                    "ours_ms": ours_ms,
                    "peer_ms": peer_ms,
                    "peer": "official export",
                    "limit": LIMIT,
                    "note": "",
                    "input_size": size,
                }
            )
    return rows


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


def _call(path: Path, inputs: Inputs) -> Callable[[], object]:
    """One run of a graph with the inputs that it takes."""
    session: ort.InferenceSession = open_session(path)
    taken = {node.name: inputs[node.name] for node in session.get_inputs()}
    return partial(session.run, None, taken)


def _alternate(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Median milliseconds of both, called in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 2):  # the first two warm up
        for call, taken in zip((ours, peer), times, strict=True):
            started = time.perf_counter()
            call()
            taken.append((time.perf_counter() - started) * 1000)
    ours_ms, peer_ms = (statistics.median(taken[2:]) for taken in times)
    return ours_ms, peer_ms
