"""The serving half against the reference, image to mask, through graphs that are really served."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from edgesam_core.bundle import Bundle, staged_folder, write_manifest
from edgesam_core.decode import Prompt
from edgesam_core.export.official import export_official
from edgesam_core.export.write_bundle import write_bundle
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.segmenter import Segmenter
from edgesam_core.upscale import upscale
from tests.core.conftest import click, disc_picture

pytestmark = pytest.mark.slow

# check_example.py's limits of the fixtures, for fp32 in PyTorch. ONNX Runtime's own noise on these
# weights is 2e-5 on the embedding and 1e-4 on the logits, and the mask bits follow.
MAX_EMBEDDING_DIFFERENCE, MAX_LOGIT_DIFFERENCE, MAX_PIXELS = 1e-4, 1e-3, 20


@pytest.fixture(scope="module")
def served(parity_inputs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """The parity weights, exported in full precision and served."""
    weights = {key: torch.from_numpy(value) for key, value in parity_inputs.state_dict().items()}
    folder = tmp_path_factory.mktemp("parity") / "parity"
    write_bundle(
        weights, folder, name="parity", input_size=1024, refines_with_mask_input=True, half=False
    )
    return Segmenter(Bundle.open(folder))


@pytest.mark.parametrize("image", ["landscape", "portrait"])
def test_what_is_served_equals_the_reference(
    shared: Path, parity_inputs: ModuleType, served: Segmenter, image: str
) -> None:
    encoder = np.load(shared / "parity" / "encoder.npz")
    decoder = np.load(shared / "parity" / "decoder.npz")
    masks = np.load(shared / "parity" / "masks_fullres.npz")
    embedding = served.embed(parity_inputs.IMAGES[image]())
    sampled = parity_inputs.sample_index("embedding", embedding.image_embedding.size)
    np.testing.assert_allclose(
        embedding.image_embedding.reshape(-1)[sampled],
        encoder[f"{image}.embedding"],
        atol=MAX_EMBEDDING_DIFFERENCE,
    )
    cases = parity_inputs.PROMPTS[image]
    prompts = [
        Prompt.from_clicks(
            [
                (*xy, label)
                for xy, label in zip(c.get("points", ()), c.get("labels", ()), strict=True)
            ],
            box_xyxy=c.get("box"),
            mask_input=parity_inputs.mask_input()[0] if c.get("mask") else None,
        )
        for c in cases.values()
    ]
    outputs = served.decode(embedding, prompts)
    sampled = parity_inputs.sample_index("low_res", 256 * 256)
    for case, output in zip(cases, outputs, strict=True):
        np.testing.assert_allclose(
            output.low_res_logits.reshape(4, -1)[:, sampled],
            decoder[f"{image}.{case}.low_res.samples"],
            atol=MAX_LOGIT_DIFFERENCE,
        )
        np.testing.assert_allclose(
            output.iou_prediction, decoder[f"{image}.{case}.iou"], atol=MAX_LOGIT_DIFFERENCE
        )
        for index in range(4):
            mask = upscale(
                output.low_res_logits[index],
                input_size=1024,
                input_size_hw=embedding.input_size_hw,
                original_size_hw=embedding.original_size_hw,
            ).full()
            assert abs(mask.sum() - masks[f"{image}.{case}.area"][index]) <= MAX_PIXELS
            every_fourth = mask[::4, ::4].ravel()
            bits = np.unpackbits(masks[f"{image}.{case}.sub4"][index])[: every_fourth.size]
            assert np.count_nonzero(every_fourth != bits.astype(bool)) <= MAX_PIXELS


def test_the_official_pair_answers_as_our_export_of_the_same_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EdgeSam("bilinear").eval()
    write_bundle(model, tmp_path / "ours", name="ours", input_size=128, half=False)
    with staged_folder(tmp_path / "official") as folder:
        export_official(model, folder, input_size=128)
        write_manifest(
            folder,
            name="edge_sam_3x",
            input_size=128,
            upsample="bilinear",
            refines_with_mask_input=False,
            licence="S-Lab-1.0",
            origin="Exported by a test the official way.",
        )
    ours, official = (Segmenter(Bundle.open(tmp_path / name)) for name in ("ours", "official"))
    picture = disc_picture(0)
    prompts = [
        click(60, 45),
        Prompt.from_clicks(box_xyxy=(10, 10, 60, 70)),
        Prompt.from_clicks([(60, 45, 1), (100, 80, 0)]),
        Prompt.from_clicks([(60, 45, 1)], box_xyxy=(10, 10, 90, 70)),
    ]
    answers = [s.decode(s.embed(picture), prompts) for s in (ours, official)]
    for mine, theirs in zip(*answers, strict=True):
        np.testing.assert_allclose(mine.low_res_logits, theirs.low_res_logits, atol=1e-4)
    (suggestion,) = official.segment(official.embed(picture), prompts[:1])
    assert suggestion.mask.area > 0
