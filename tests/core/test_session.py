from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgesam_core.bundle import Bundle
from edgesam_core.encode import Encoder
from edgesam_core.errors import BundleError
from edgesam_core.session import open_session, run_graph


@pytest.fixture
def encoder_path(painted_bundle: Callable[..., Path]) -> Path:
    return Bundle.open(painted_bundle(np.zeros((4, 16, 16), np.float32))).encoder_path


def test_what_is_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(BundleError, match=r"encoder\.onnx cannot be opened") as caught:
        open_session(path)
    assert str(tmp_path) not in caught.value.sentence


def test_a_graph_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"decoder\.onnx cannot be opened"):
        open_session(tmp_path / "decoder.onnx")


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param({"image": np.zeros((1, 3, 32, 32), np.float32)}, id="another size"),
        pytest.param({"picture": np.zeros((1, 3, 64, 64), np.float32)}, id="another name"),
        pytest.param({"image": np.zeros((1, 3, 64, 64), np.float64)}, id="another type"),
        pytest.param({}, id="nothing"),
    ],
)
def test_what_the_graph_does_not_take_gets_a_sentence(
    encoder_path: Path, inputs: dict[str, np.ndarray]
) -> None:
    with pytest.raises(BundleError, match="does not take what its manifest says"):
        run_graph(open_session(encoder_path), inputs, ["image_embeddings"])


def test_an_encoder_of_another_size_than_the_manifest_says_is_refused(encoder_path: Path) -> None:
    with pytest.raises(BundleError, match="expected one image of 128 x 128"):
        Encoder(open_session(encoder_path), input_size=128, bundle_version="x")
