from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgesam_core.bundle import Bundle
from edgesam_core.candidates import Ranking
from edgesam_core.decode import Prompt
from edgesam_core.errors import BundleError
from edgesam_core.export.encoder import encoder_graph
from edgesam_core.export.write_bundle import write_bundle
from edgesam_core.nn.checkpoint import load_state_dict, official_state_dict
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.family import ARCHITECTURES, model_from, read_model, recognise
from edgesam_core.nn.sam_model import SamModel
from edgesam_core.nn.sam_vit import VitSize, build_sam_vit
from edgesam_core.nn.tiny_vit import build_mobile_sam
from edgesam_core.segmenter import Segmenter
from tests.core.networks import random_network, randomise

PUBLISHED = {
    "edge_sam": ("state_dict_keys.json", 821, 9_582_112),
    "mobile_sam": ("keys_mobile_sam.json", 439, 10_130_092),
    "sam_vit_b": ("keys_sam_vit_b.json", 314, 93_735_472),
    "sam_vit_l": ("keys_sam_vit_l.json", 482, 312_342_832),
    "sam_vit_h": ("keys_sam_vit_h.json", 594, 641_090_608),
}
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


def without_content(shared: Path, name: str) -> dict[str, torch.Tensor]:
    """A published state dict's names and shapes; takes no memory, whatever its size."""
    shapes = json.loads((shared / "parity" / PUBLISHED[name][0]).read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_are_recognised_and_loaded_strictly(name: str, shared: Path) -> None:
    _, tensors, parameters = PUBLISHED[name]
    state_dict = without_content(shared, name)
    assert len(state_dict) == tensors
    assert recognise(state_dict) == name
    with torch.device("meta"):
        model = ARCHITECTURES[name].build()
    assert model.architecture == name
    assert sum(p.numel() for p in model.parameters()) == parameters
    load_state_dict(model, state_dict)  # refuses missing, unknown and misshapen tensors


@pytest.mark.parametrize("name", PUBLISHED)
def test_one_tensor_too_few_or_too_many_is_refused_by_name(name: str, shared: Path) -> None:
    state_dict = without_content(shared, name)
    with torch.device("meta"):
        model = ARCHITECTURES[name].build()
    hq = state_dict | {"mask_decoder.hf_token.weight": torch.empty(1, 256)}  # SAM-HQ
    with pytest.raises(BundleError, match=f"not {name}'s: 'mask_decoder.hf_token.weight' is unk"):
        load_state_dict(model, hq)
    del state_dict["image_encoder.neck.0.weight"], state_dict["mask_decoder.iou_token.weight"]
    with pytest.raises(BundleError, match=r"'image_encoder.neck.0.weight' is missing, and 1 more"):
        load_state_dict(model, state_dict)


@pytest.mark.parametrize(
    ("state_dict", "sentence"),
    [
        pytest.param({}, "its 0 tensors begin with 'nothing'", id="empty"),
        pytest.param(
            {"conv1.weight": torch.zeros(64, 3, 7, 7)},
            r"its 1 tensors begin with 'conv1.weight', and none of the keys is there .*, such as "
            r"'image_encoder.features.0.0.c.weight'",
            id="a ResNet",
        ),
        pytest.param(
            {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 384)},
            r"'image_encoder.pos_embed' has the shape \[1, 64, 64, 384\], known are "
            r"\[1, 64, 64, 768\], ",
            id="a ViT of another width",
        ),
    ],
)
def test_an_unknown_architecture_is_named_with_the_reason(
    state_dict: dict[str, torch.Tensor], sentence: str
) -> None:
    with pytest.raises(BundleError, match=f"of no known architecture.*{sentence}"):
        model_from(state_dict)


def test_a_mobile_sam_file_comes_back_whole_and_answers(shared: Path, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    weights = {
        key: torch.zeros((), dtype=torch.int64)
        if key.endswith("num_batches_tracked")
        else torch.rand(tensor.shape, generator=random)
        for key, tensor in without_content(shared, "mobile_sam").items()
    }
    torch.save(weights, tmp_path / "mobile_sam.pt")
    model = read_model(tmp_path / "mobile_sam.pt")
    assert (model.architecture, model.input_size, model.training) == ("mobile_sam", 1024, False)
    back = official_state_dict(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in weights.items())


def test_a_file_of_the_larger_student_is_recognised(tmp_path: Path) -> None:
    larger = EdgeSam(trunk="repvit_m2_3").eval()
    torch.save(official_state_dict(larger), tmp_path / "larger.pth")
    model = read_model(tmp_path / "larger.pth")
    assert (model.architecture, model.input_size) == ("edge_sam_m2_3", None)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.encode(image), larger.encode(image))


def small_vit() -> SamModel:
    """SAM's ViT with two blocks, one in windows and one global."""
    size = VitSize(width=32, heads=2, blocks=2, global_blocks=(1,), input_size=256)
    return build_sam_vit("sam_vit_b", size)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(small_vit, id="SAM"),
        pytest.param(lambda: build_mobile_sam(256), id="MobileSAM"),
        pytest.param(lambda: EdgeSam(trunk="repvit_m2_3"), id="the larger student"),
    ],
)
def test_what_is_exported_of_an_encoder_gives_its_own_embedding(
    build: Callable[[], SamModel],
) -> None:
    torch.manual_seed(0)
    model = randomise(build().eval())
    graph = encoder_graph(model)
    # Folding took place.
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in graph.modules())
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        torch.testing.assert_close(graph(image), model.encode(image), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_bundle_is_read_as_the_network_that_it_serves(tmp_path: Path) -> None:
    model = random_network(upsample="bilinear")
    model.draws_prompts = True
    folder = write_bundle(model, tmp_path / "student", name="student", input_size=64, half=False)
    again = read_model(folder)
    assert isinstance(again, EdgeSam)
    assert (again.upsample, again.draws_prompts, again.input_size) == ("bilinear", True, 64)
    image, box = torch.randn(1, 3, 64, 64), torch.tensor([[5.0, 5, 40, 50]])
    with torch.no_grad():
        expected, _ = model.decode(model.encode(image), box_xyxy=box)
        actual, _ = again.decode(again.encode(image), box_xyxy=box)
    # Kernels were rounded to fp16 for the weights of the bundle.
    assert (actual - expected).abs().max() < 0.05 * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(small_vit, id="SAM"),
        pytest.param(lambda: build_mobile_sam(256), id="MobileSAM"),
    ],
)
def test_sams_networks_are_exported_and_served_by_sams_rule(
    build: Callable[[], SamModel], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = randomise(build())
    write_bundle(model, tmp_path / "sam", name="sam", input_size=256)
    segmenter = Segmenter(Bundle.open(tmp_path / "sam"), threads=1)
    manifest = segmenter.manifest
    assert (manifest.architecture, manifest.upsample) == (model.architecture, "none")
    assert segmenter.ranking == Ranking(trusts_iou_prediction=True, offers_mask_0_for_a_click=False)

    embedding = segmenter.embed(PICTURE)
    prompts = [Prompt.from_clicks([(40, 30, 1)]), Prompt.from_clicks(box_xyxy=(20, 10, 60, 50))]
    for suggestion in segmenter.segment(embedding, prompts):
        assert suggestion.mask.full().shape == (60, 80)
    card = (tmp_path / "sam" / "MODEL_CARD.md").read_text()
    assert ARCHITECTURES[model.architecture].description in card
    assert "feature pyramid" not in card


def test_a_network_of_one_size_is_not_exported_for_another(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="mobile_sam takes images of 1024 pixels a side, not 512"):
        write_bundle(build_mobile_sam(), tmp_path / "small", name="small", input_size=512)
    assert list(tmp_path.iterdir()) == []
