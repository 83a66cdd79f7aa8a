"""An encoder that gets no padding: what it sees, what the rest of the embedding holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgesam_core.encode import Encoder
from edgesam_core.export.encoder import encoder_graph, export_encoder
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.preprocess import preprocess
from edgesam_core.session import open_session
from tests.core.conftest import disc_picture

SIZE = 128


@pytest.fixture(scope="module")
def encoder(model: EdgeSam, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    path = tmp_path_factory.mktemp("padding") / "encoder.onnx"
    export_encoder(model, path, input_size=SIZE, leaves_out_padding=True)
    return Encoder(
        open_session(path, 1), input_size=SIZE, bundle_version="x", leaves_out_padding=True
    )


@pytest.mark.parametrize(
    ("size_hw", "computed_hw"),
    [
        pytest.param((300, 400), (96, 128), id="4:3"),
        pytest.param((400, 100), (128, 32), id="tall"),
        pytest.param((200, 300), (96, 128), id="3:2, rounded up to whole cells"),
        pytest.param((90, 90), (128, 128), id="square"),
    ],
)
def test_only_the_part_that_shows_image_is_computed(
    model: EdgeSam, encoder: Encoder, size_hw: tuple[int, int], computed_hw: tuple[int, int]
) -> None:
    picture = disc_picture(1, size_hw)
    embedding = encoder.encode(picture)
    height, width = computed_hw
    x, _ = preprocess(picture, SIZE)
    with torch.no_grad():
        expected = encoder_graph(model)(torch.from_numpy(x[:, :, :height, :width])).numpy()
    assert embedding.image_embedding.shape == (1, 256, SIZE // 16, SIZE // 16)
    rows, columns = height // 16, width // 16
    actual = embedding.image_embedding[:, :, :rows, :columns]
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
    assert not embedding.image_embedding[:, :, rows:].any()
    assert not embedding.image_embedding[:, :, :, columns:].any()


def test_other_networks_keep_their_padding(tmp_path: Path) -> None:
    other: Any = SimpleNamespace(architecture="mobile_sam")
    with pytest.raises(ValueError, match="expected EdgeSAM, got mobile_sam"):
        export_encoder(other, tmp_path / "x.onnx", input_size=SIZE, leaves_out_padding=True)
