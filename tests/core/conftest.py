"""Fixtures of the core: an opened model, models whose answers are known, a photo-like picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesam_core import openvino_session
from edgesam_core.bundle import Bundle, staged_folder, write_manifest
from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.preprocess import resized_size_hw
from edgesam_core.segmenter import Segmenter
from tests import parts

if TYPE_CHECKING:
    from edgesam_core.nn.edge_sam import EdgeSam

PAINTED_SIZE = 64
"""Input size of the models that `painted_bundle` makes: logits of 16 x 16."""

FloatArray = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def segmenter(tiny_bundle: Path) -> Segmenter:
    """A really exported network with random weights, opened."""
    return Segmenter(Bundle.open(tiny_bundle), threads=1)


@pytest.fixture(scope="module")
def model() -> EdgeSam:
    """A network with random weights in which every part has a say, in PyTorch."""
    from tests.core.networks import random_network

    return random_network()


@pytest.fixture
def openvino() -> frozenset[str]:
    """What the processor can do in OpenVINO's words; skips where it is not installed."""
    found = openvino_session.capabilities()
    if not found:
        parts.missing("OpenVINO is not installed")
    return found


@pytest.fixture
def picture() -> npt.NDArray[np.uint8]:
    """A smooth picture with a disc, 120 x 90 (W x H)."""
    return disc_picture(0)


def disc_picture(seed: int, size_hw: tuple[int, int] = (90, 120)) -> npt.NDArray[np.uint8]:
    """A picture that differs from that of every other seed."""
    random = np.random.default_rng(seed)
    height, width = size_hw
    y, x = np.mgrid[0:height, 0:width]
    ground, disc = random.integers(0, 256, (2, 3))
    centre_x, centre_y = random.uniform(0.3, 0.7, 2) * (width, height)
    inside = np.hypot(x - centre_x, y - centre_y) < min(size_hw) / 4
    noise = random.integers(-9, 10, (height, width, 3))
    return (np.where(inside[..., None], disc, ground) + noise).clip(0, 255).astype(np.uint8)


def embedding_of(
    original_size_hw: tuple[int, int], *, input_size: int = PAINTED_SIZE, version: str = "test"
) -> Embedding:
    """An embedding without content, for steps that need its sizes only."""
    cells = input_size // 16
    return Embedding(
        image_embedding=np.zeros((1, 256, cells, cells), np.float32),
        original_size_hw=original_size_hw,
        input_size_hw=resized_size_hw(original_size_hw, input_size),
        input_size=input_size,
        bundle_version=version,
    )


@pytest.fixture
def painted_bundle(tmp_path: Path) -> Callable[[FloatArray], Path]:
    """A function that makes a bundle whose decoder always answers with the given logits.

    The real network cannot be told what to see; these graphs can, and are run like any other.
    """

    def make(low_res_logits: FloatArray, *, official: bool = False) -> Path:
        folder = tmp_path / "painted"
        prefix = "edge_sam_3x_" if official else ""
        with staged_folder(folder, overwrite=True) as stage:
            onnx.save(_flat_encoder(), stage / f"{prefix}encoder.onnx")
            graph = _official(low_res_logits) if official else _ours(low_res_logits)
            onnx.save(graph, stage / f"{prefix}decoder.onnx")
            write_manifest(
                stage,
                name="painted",
                input_size=PAINTED_SIZE,
                upsample="bilinear",
                refines_with_mask_input=not official,
                licence="Apache-2.0",
                origin="Painted by a test.",
            )
        return folder

    return make


def click(x: float, y: float, label: int = 1) -> Prompt:
    """A prompt of one click in original pixels."""
    return Prompt.from_clicks([(x, y, label)])


def _value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto],
           outputs: list[onnx.ValueInfoProto], constants: dict[str, npt.NDArray[np.generic]]
           ) -> onnx.ModelProto:  # fmt: skip
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "painted", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _flat_encoder() -> onnx.ModelProto:
    """Mean colours of 16 x 16 pixels, repeated to 256 channels."""
    side, cells = PAINTED_SIZE, PAINTED_SIZE // 16
    weights = np.tile(np.eye(3, dtype=np.float32), (86, 1))[:256, :, None, None]
    return _model(
        [
            helper.make_node(
                "AveragePool", ["image"], ["mean"], kernel_shape=[16, 16], strides=[16, 16]
            ),
            helper.make_node("Conv", ["mean", "weights"], ["image_embeddings"]),
        ],
        [_value("image", [1, 3, side, side])],
        [_value("image_embeddings", [1, 256, cells, cells])],
        {"weights": np.ascontiguousarray(weights)},
    )


def _ours(low_res_logits: FloatArray) -> onnx.ModelProto:
    """Our decoder's names and shapes; every prompt gets the same painted masks."""
    masks, side = low_res_logits.shape[0], low_res_logits.shape[-1]
    cells = PAINTED_SIZE // 16
    one = np.array([1], np.int64)
    return _model(
        [
            # Zero, but made from every input, so that each has to be given in the right shape.
            helper.make_node("ReduceSum", ["point_coords", "axes2"], ["c"], keepdims=0),
            helper.make_node("ReduceSum", ["point_labels", "axes1"], ["l"], keepdims=0),
            helper.make_node("ReduceSum", ["mask_input", "axes3"], ["m"], keepdims=0),
            helper.make_node("ReduceSum", ["image_embeddings"], ["e"], keepdims=0),
            helper.make_node("Sum", ["c", "l", "m", "has_mask_input", "e"], ["sum"]),
            helper.make_node("Mul", ["sum", "zero"], ["zeros"]),
            helper.make_node("Unsqueeze", ["zeros", "axes3"], ["zeros4"]),
            helper.make_node("Add", ["zeros4", "painted"], ["low_res_logits"]),
            helper.make_node("Unsqueeze", ["zeros", "axes1"], ["zeros2"]),
            helper.make_node("Add", ["zeros2", "ious"], ["iou_predictions"]),
        ],
        [
            _value("image_embeddings", [1, 256, cells, cells]),
            _value("point_coords", ["prompts", "points", 2]),
            _value("point_labels", ["prompts", "points"]),
            _value("mask_input", ["prompts", 1, side, side]),
            _value("has_mask_input", ["prompts"]),
        ],
        [
            _value("low_res_logits", ["prompts", masks, side, side]),
            _value("iou_predictions", ["prompts", masks]),
        ],
        {
            "painted": low_res_logits[None],
            "ious": np.linspace(0.9, 0.6, masks, dtype=np.float32)[None],
            "zero": np.zeros(1, np.float32),
            "axes1": one,
            "axes2": np.array([1, 2], np.int64),
            "axes3": np.array([1, 2, 3], np.int64),
        },
    )


def _official(low_res_logits: FloatArray) -> onnx.ModelProto:
    """The official decoder's names, shapes and order: one prompt, scores first, no mask input."""
    masks, side = low_res_logits.shape[0], low_res_logits.shape[-1]
    cells = PAINTED_SIZE // 16
    return _model(
        [
            helper.make_node("ReduceSum", ["point_coords"], ["c"], keepdims=0),
            helper.make_node("ReduceSum", ["point_labels"], ["l"], keepdims=0),
            helper.make_node("ReduceSum", ["image_embeddings"], ["e"], keepdims=0),
            helper.make_node("Sum", ["c", "l", "e"], ["sum"]),
            helper.make_node("Mul", ["sum", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "stability"], ["scores"]),
            helper.make_node("Add", ["zeros", "painted"], ["masks"]),
        ],
        [
            _value("image_embeddings", [1, 256, cells, cells]),
            _value("point_coords", [1, "num_points", 2]),
            _value("point_labels", [1, "num_points"]),
        ],
        [_value("scores", [1, masks]), _value("masks", [1, masks, side, side])],
        {
            "painted": low_res_logits[None],
            "stability": np.linspace(0.5, 0.8, masks, dtype=np.float32)[None],
            "zero": np.zeros(1, np.float32),
        },
    )
