"""A bundle as it is written: what it says, what it holds, and that a bad one never appears."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from edgesam_core.bundle import Bundle
from edgesam_core.decode import Prompt
from edgesam_core.errors import BundleError
from edgesam_core.export import write_bundle
from edgesam_core.export.decoder import export_decoder
from edgesam_core.nn.checkpoint import official_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.segmenter import Segmenter
from tests.core.networks import random_network

SIZE = 128


@pytest.fixture(scope="module")
def bundle_folder(model: EdgeSam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle.write_bundle(
        model,
        tmp_path_factory.mktemp("bundles") / "written",
        name="written",
        input_size=SIZE,
        licence="CC0-1.0",
        origin="Random numbers.",
        scores={"box_miou": 12.3},
    )


def test_a_written_bundle_opens_says_what_it_is_and_is_small(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    manifest = bundle.manifest
    assert (manifest.name, manifest.input_size, manifest.upsample) == ("written", SIZE, "bicubic")
    assert (manifest.licence, manifest.origin) == ("CC0-1.0", "Random numbers.")
    assert manifest.scores == {"box_miou": 12.3}
    names = {"MODEL_CARD.md", "decoder.onnx", "encoder.onnx", "weights.safetensors"}
    assert set(manifest.files) == names
    assert sum(record.bytes for record in manifest.files.values()) < 45e6
    readable = [stat.S_IMODE((bundle_folder / name).stat().st_mode) & 0o444 for name in names]
    assert set(readable) == {0o444}  # a service may run as another user
    card = (bundle_folder / "MODEL_CARD.md").read_text()
    assert "ONNX Runtime against PyTorch" in card
    assert "box_miou: 12.3" in card


def test_a_written_bundle_answers_a_click(bundle_folder: Path) -> None:
    segmenter = Segmenter(Bundle.open(bundle_folder), threads=1)
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    prompt = Prompt.from_clicks([(40, 30, 1)])
    (suggestion,) = segmenter.segment(segmenter.embed(picture), [prompt])
    assert suggestion.mask.full().shape == (60, 80)


def test_the_stored_weights_are_the_official_ones_rounded(
    model: EdgeSam, bundle_folder: Path
) -> None:
    official = official_state_dict(model)
    stored = read_checkpoint(bundle_folder / "weights.safetensors")
    assert stored.keys() == official.keys()
    for key, tensor in stored.items():
        assert tensor.shape == official[key].shape
        torch.testing.assert_close(tensor.to(official[key].dtype), official[key],
                                   rtol=2**-11, atol=2**-25)  # fmt: skip
    with safe_open(bundle_folder / "weights.safetensors", "pt") as file:
        large = file.get_tensor("mask_decoder.transformer.layers.0.mlp.lin1.weight")
    assert large.dtype == torch.float16


def test_a_bundle_made_from_its_own_weights_is_the_same_model(
    bundle_folder: Path, tmp_path: Path
) -> None:
    weights = read_checkpoint(bundle_folder / "weights.safetensors")
    again = write_bundle.write_bundle(
        weights, tmp_path / "again", name="again", input_size=SIZE, licence="", origin=""
    )
    first, second = (json.loads((f / "manifest.json").read_text()) for f in (bundle_folder, again))
    for name in ("encoder.onnx", "decoder.onnx", "weights.safetensors"):
        assert first["files"][name] == second["files"][name]


def test_an_export_that_fails_its_check_leaves_no_file(
    model: EdgeSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_weights(model: EdgeSam, path: Path, *, input_size: int) -> None:
        export_decoder(random_network(seed=1), path, input_size=input_size)

    monkeypatch.setattr(write_bundle, "export_decoder", other_weights)
    with pytest.raises(BundleError, match=r"differs from PyTorch: logits by .* No bundle"):
        write_bundle.write_bundle(model, tmp_path / "wrong", name="wrong", input_size=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, -64, 100])
def test_an_odd_input_size_is_refused(size: int, model: EdgeSam, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no multiple of 64"):
        write_bundle.write_bundle(model, tmp_path / "odd", name="odd", input_size=size)


def test_a_state_dict_that_does_not_fit_is_refused(model: EdgeSam, tmp_path: Path) -> None:
    state_dict = official_state_dict(model)
    state_dict.popitem()
    with pytest.raises(BundleError, match=r"not edge_sam's: .* is missing"):
        write_bundle.write_bundle(state_dict, tmp_path / "short", name="short", input_size=64)
    assert list(tmp_path.iterdir()) == []
