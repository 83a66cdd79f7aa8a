"""Against the answers of the original code, recorded with weights that anyone can regenerate."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgesam_core.__main__ import main
from edgesam_core.bundle import Bundle, staged_folder, write_manifest
from edgesam_core.candidates import stability_score
from edgesam_core.decode import DecoderOutput, Prompt
from edgesam_core.export.official import DECODER_NAME, ENCODER_NAME, export_official
from edgesam_core.export.write_bundle import write_bundle
from edgesam_core.nn.checkpoint import load_state_dict, official_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.preprocess import preprocess
from edgesam_core.segmenter import Segmenter
from edgesam_core.session import open_session, run_graph
from tests.core.parity_adapter import Adapter

pytestmark = pytest.mark.slow

# On a busy machine PyTorch's threads wait for each other ten times as long as they work.
torch.set_num_threads(1)

MIN_MASK_IOU = 0.999
COMPARISONS = 132
"""As many as check_example.py makes with our adapter: fewer would mean that some were lost."""

Bits = npt.NDArray[np.bool_]


@pytest.fixture(scope="module")
def reference(shared: Path) -> Iterator[ModuleType]:
    """../shared/parity/check_example.py, which reads the recordings and knows the tolerances."""
    folder = str(shared / "parity")
    sys.path.insert(0, folder)
    yield importlib.import_module("check_example")
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, Any]:
    names = ("decoder", "masks_fullres", "onnx_wrapper")
    return {name: np.load(shared / "parity" / f"{name}.npz") for name in names}


@pytest.fixture(scope="module")
def state_dict(reference: ModuleType) -> dict[str, npt.NDArray[np.generic]]:
    weights: dict[str, npt.NDArray[np.generic]] = reference.MSD.build()
    assert reference.MSD.digest(weights) == reference.MSD.SHA256[False]
    return weights


@pytest.fixture(scope="module")
def checkpoint(
    state_dict: dict[str, npt.NDArray[np.generic]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("parity") / "parity.pth"
    torch.save({key: torch.from_numpy(value) for key, value in state_dict.items()}, path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> EdgeSam:
    model = EdgeSam().eval()
    load_state_dict(model, read_checkpoint(checkpoint))
    return model


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Made by the command, from the checkpoint, at the official size."""
    folder = tmp_path_factory.mktemp("bundles") / "parity"
    assert main(["bundle", str(checkpoint), str(folder)]) == 0
    return Bundle.open(folder)


def unpack(bits: npt.NDArray[np.uint8]) -> Bits:
    """[4, 8192] bytes -> [4, 65536] bool: the recorded ``logit > 0``."""
    return np.unpackbits(bits, axis=-1).astype(bool)


def iou(actual: Bits, expected: Bits) -> float:
    return float((actual & expected).sum() / (actual | expected).sum())


def answers(
    segmenter: Segmenter, reference: ModuleType, recorded: dict[str, Any]
) -> Iterator[tuple[str, DecoderOutput, Bits]]:
    """All cases of fixture_inputs.py by name, as answered here and as recorded [4, 65536]."""
    for image_name, make in reference.FI.IMAGES.items():
        embedding = segmenter.embed(make())
        cases = reference.FI.PROMPTS[image_name]
        prompts = [prompt_of(case, reference) for case in cases.values()]
        for case, output in zip(cases, segmenter.decode(embedding, prompts), strict=True):
            name = f"{image_name}.{case}"
            yield name, output, unpack(recorded["decoder"][f"{name}.low_res.bits"])


def prompt_of(case: dict[str, Any], reference: ModuleType) -> Prompt:
    """A case of fixture_inputs.py, in original pixels."""
    points, labels = case.get("points", ()), case.get("labels", ())
    clicks = [(x, y, label) for (x, y), label in zip(points, labels, strict=True)]
    mask_input = reference.FI.mask_input()[0] if case.get("mask") else None
    return Prompt.from_clicks(clicks, box_xyxy=case.get("box"), mask_input=mask_input)


def test_every_comparison_with_the_original_holds(
    reference: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, float, float]] = []

    real = reference.Report.count

    def count(self: object, name: str, value: float, tol: float) -> None:
        seen.append((name, value, tol))
        real(self, name, value, tol)

    monkeypatch.setattr(reference.Report, "count", count)
    reference.run(Adapter)
    assert [(name, value) for name, value, limit in seen if not value <= limit] == []
    assert len(seen) == COMPARISONS


def test_all_821_official_tensors_load_and_come_back_unchanged(
    state_dict: dict[str, npt.NDArray[np.generic]], model: EdgeSam
) -> None:
    ours = official_state_dict(model)
    assert len(ours) == 821
    assert ours.keys() == state_dict.keys()
    assert all(np.array_equal(ours[key].numpy(), value) for key, value in state_dict.items())


def test_a_bundle_of_the_command_segments_as_the_original_does(
    bundle: Bundle, reference: ModuleType, recorded: dict[str, Any]
) -> None:
    for name, output, expected in answers(Segmenter(bundle), reference, recorded):
        actual = output.low_res_logits.reshape(4, -1) > 0
        assert iou(actual, expected) >= MIN_MASK_IOU, name
        # check_example.py's own limits.
        assert (actual != expected).sum() <= reference.TOL["mask_bits"], name
        ious = recorded["decoder"][f"{name}.iou"]
        np.testing.assert_allclose(output.iou_prediction, ious, atol=reference.TOL["iou"])


@pytest.fixture(scope="module")
def official_bundle(model: EdgeSam, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle around files exported the official way from the same weights."""
    folder = tmp_path_factory.mktemp("bundles") / "edge_sam_3x"
    with staged_folder(folder) as stage:
        export_official(model, stage)
        write_manifest(
            stage, name="edge_sam_3x", input_size=1024, upsample="bilinear",
            refines_with_mask_input=False, licence="S-Lab License 1.0", origin="Exported here.",
        )  # fmt: skip
    return Bundle.open(folder)


def test_files_exported_the_official_way_equal_the_official_wrapper(
    official_bundle: Bundle, reference: ModuleType, recorded: dict[str, Any]
) -> None:
    assert (official_bundle.encoder_path.name, official_bundle.decoder_path.name) == (
        ENCODER_NAME, DECODER_NAME,
    )  # fmt: skip
    encoder = open_session(official_bundle.encoder_path)
    decoder = open_session(official_bundle.decoder_path)
    wrapper = recorded["onnx_wrapper"]
    positions = reference.FI.sample_index("low_res", 65536)[::4]
    for image_name, make in reference.FI.IMAGES.items():
        (embedding,) = run_graph(
            encoder, {"image": preprocess(make(), 1024)[0]}, ["image_embeddings"]
        )
        for case in ("point_nopad", "point_pad", "box", "box_point", "points3_nopad"):
            key = f"{image_name}.{case}"
            inputs = {
                "image_embeddings": embedding,
                "point_coords": wrapper[f"{key}.point_coords"],
                "point_labels": wrapper[f"{key}.point_labels"],
            }
            scores, masks = run_graph(decoder, inputs, ["scores", "masks"])
            # As check_example.py has it: 1e-3 on logits, 2e-3 on stability scores, 20 pixels.
            np.testing.assert_allclose(scores, wrapper[f"{key}.scores_stability"], atol=2e-3)
            logits = masks.reshape(4, -1)
            np.testing.assert_allclose(
                logits[:, positions], wrapper[f"{key}.masks.samples"], atol=1e-3
            )
            assert ((logits > 0) != unpack(wrapper[f"{key}.masks.bits"])).sum() <= 20


def test_official_files_are_served_with_the_padding_point_that_they_need(
    official_bundle: Bundle, reference: ModuleType, recorded: dict[str, Any]
) -> None:
    segmenter, wrapper = Segmenter(official_bundle), recorded["onnx_wrapper"]
    for image_name, make in reference.FI.IMAGES.items():
        embedding = segmenter.embed(make())
        for case, recording in (("point", "point_pad"), ("box", "box"), ("box_point", "box_point")):
            prompt = prompt_of(reference.FI.PROMPTS[image_name][case], reference)
            (output,) = segmenter.decode(embedding, [prompt])
            logits = output.low_res_logits.reshape(4, -1)
            expected = unpack(wrapper[f"{image_name}.{recording}.masks.bits"])
            assert iou(logits > 0, expected) >= MIN_MASK_IOU
            np.testing.assert_allclose(
                output.iou_prediction, stability_score(output.low_res_logits), atol=1e-5
            )
            (suggestion,) = segmenter.segment(embedding, [prompt])
            assert suggestion.mask.area > 0


def test_weights_rounded_to_fp16_cost_a_pixel_in_a_thousand_of_the_most_ragged_masks(
    model: EdgeSam, reference: ModuleType, recorded: dict[str, Any], tmp_path: Path
) -> None:
    # What half=True costs at worst: these masks have an edge at every other pixel, and all 821
    # tensors are noise, so that rounding errors do not average out as they do in trained weights.
    write_bundle(model, tmp_path / "half", name="half", input_size=1024)
    segmenter = Segmenter(Bundle.open(tmp_path / "half"))
    for name, output, expected in answers(segmenter, reference, recorded):
        assert iou(output.low_res_logits.reshape(4, -1) > 0, expected) >= 0.998, name
