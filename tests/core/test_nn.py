from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

from edgesam_core.errors import BundleError
from edgesam_core.nn.checkpoint import load_state_dict, official_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.layer_norm import LayerNorm2d
from edgesam_core.nn.mask_decoder import select_masks
from edgesam_core.nn.prompt_encoder import (
    BOTTOM_RIGHT,
    IGNORE,
    NEGATIVE,
    PADDING,
    POSITIVE,
    TOP_LEFT,
    PromptEncoder,
    assemble_points,
)
from edgesam_core.nn.repvit import STAGE_CHANNELS, stage_outputs

SIZE = 64
SIDE = SIZE // 16


@pytest.fixture(scope="module")
def embedding() -> torch.Tensor:
    return torch.randn(1, 256, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def prompt_encoder(model: EdgeSam) -> PromptEncoder:
    return model.prompt_encoder


def test_it_has_the_published_number_of_parameters(model: EdgeSam) -> None:
    parts = (model.image_encoder.backbone, model.prompt_encoder, model.mask_decoder, model)
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [4_713_712, 6_220, 4_058_340, 9_582_112]


def test_keys_and_shapes_are_the_official_ones(model: EdgeSam, shared: Path) -> None:
    official = json.loads((shared / "parity" / "state_dict_keys.json").read_text())
    ours = official_state_dict(model)
    assert {key: list(tensor.shape) for key, tensor in ours.items()} == official


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_checkpoint_comes_back_unchanged(ending: str, model: EdgeSam, tmp_path: Path) -> None:
    path, official = tmp_path / f"weights{ending}", official_state_dict(model)
    if ending == ".pth":
        torch.save({"model": official}, path)  # as the training code wraps it
    else:
        save_file({key: tensor.contiguous() for key, tensor in official.items()}, path)
    fresh = EdgeSam()
    load_state_dict(fresh, read_checkpoint(path))
    loaded = official_state_dict(fresh)
    assert len(loaded) == 821
    assert all(torch.equal(loaded[key], tensor) for key, tensor in official.items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda d: d.pop("mask_decoder.iou_token.weight"), "iou_token", id="missing"),
        pytest.param(lambda d: d.update(surplus=torch.zeros(1)), "surplus", id="unknown"),
        pytest.param(
            lambda d: d.update({"image_encoder.neck.0.weight": torch.zeros(256, 256, 3, 3)}),
            "neck.0.weight",
            id="other shape",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_and_the_tensor_named(
    change: Callable[[dict[str, torch.Tensor]], object], named: str, model: EdgeSam
) -> None:
    state_dict = official_state_dict(model)
    change(state_dict)
    with pytest.raises(BundleError, match=f"not edge_sam's: .*{named}"):
        load_state_dict(EdgeSam(), state_dict)


def test_a_checkpoint_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (trace,)

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save({"weights": Bomb()}, tmp_path / "zipped.pth")
    for name in ("bomb.pth", "zipped.pth"):
        with pytest.raises(BundleError, match=f"{name} could not be read"):
            read_checkpoint(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"epoch": 3}, {1: torch.ones(2)}])
def test_a_file_that_holds_no_table_of_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(BundleError, match=r"odd\.pth holds something else"):
        read_checkpoint(tmp_path / "odd.pth")


def test_fpn_taps_lie_after_the_last_block_of_their_stage(model: EdgeSam) -> None:
    backbone: Any = model.image_encoder.backbone
    outputs = list(stage_outputs(backbone, torch.randn(1, 3, SIZE, SIZE)))
    shapes = [tuple(output.shape[1:]) for output in outputs]
    sides = (SIZE // 4, SIZE // 8, SIZE // 16, SIZE // 32)
    assert shapes == [(c, s, s) for c, s in zip(STAGE_CHANNELS, sides, strict=True)]
    # The block that timm counts to the next stage is the last one of ours.
    before = backbone.stages[2].blocks(
        _after_downsampling(backbone.stages[2].downsample, outputs[1])
    )
    torch.testing.assert_close(backbone.stages[3].downsample.pre_block(before), outputs[2])


def _after_downsampling(downsample: Any, pre_block: torch.Tensor) -> torch.Tensor:
    x = downsample.channel_downsample(downsample.spatial_downsample(pre_block))
    return x + downsample.ffn(x)


@pytest.mark.parametrize("size", [64, 128, 192])
def test_any_multiple_of_64_gives_an_embedding_of_a_sixteenth(size: int, model: EdgeSam) -> None:
    with torch.no_grad():
        embedding = model.encode(torch.randn(1, 3, size, size))
        logits, iou = model.decode(embedding, box_xyxy=torch.tensor([[5.0, 5, 40, 50]]))
    assert embedding.shape == (1, 256, size // 16, size // 16)
    assert logits.shape == (1, 4, size // 4, size // 4)
    assert iou.shape == (1, 4)


def test_layer_norm_2d_is_a_layer_norm_over_channels() -> None:
    norm = LayerNorm2d(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    # Values so small that the eps of 1e-6 shows; PyTorch's default would be off by a factor.
    x = 1e-3 * torch.randn(2, 6, 3, 4)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias, 1e-6)
    torch.testing.assert_close(norm(x), expected.permute(0, 3, 1, 2))


def test_one_three_or_four_masks_are_slices_of_the_same_four(
    model: EdgeSam, embedding: torch.Tensor
) -> None:
    prompt = {"point_coords": torch.tensor([[[20.0, 30]]]), "point_labels": torch.ones(1, 1)}
    answers = {
        number: model.decode(embedding, **prompt, num_multimask_outputs=number)
        for number in (1, 3, 4)
    }
    (four, four_iou) = answers[4]
    for number, masks in ((1, slice(0, 1)), (3, slice(1, 4))):
        logits, iou = answers[number]
        assert torch.equal(logits, four[:, masks])
        assert torch.equal(iou, four_iou[:, masks])


@pytest.mark.parametrize("number", [0, 2, 5])
def test_another_number_of_masks_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="expected 1, 3 or 4"):
        select_masks(torch.zeros(1, 4, 2, 2), number)


def test_points_without_a_box_get_a_padding_point_and_a_box_two_corners() -> None:
    coords, labels = torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([[1.0, 0]])
    box = torch.tensor([[5.0, 6, 7, 8]])
    points_only = assemble_points(coords, labels, None)
    assert points_only[0].tolist() == [[[1, 2], [3, 4], [0, 0]]]
    assert points_only[1].tolist() == [[POSITIVE, NEGATIVE, PADDING]]
    both = assemble_points(coords, labels, box)
    assert both[0].tolist() == [[[1, 2], [3, 4], [5, 6], [7, 8]]]
    assert both[1].tolist() == [[POSITIVE, NEGATIVE, TOP_LEFT, BOTTOM_RIGHT]]
    box_only = assemble_points(None, None, box)
    assert box_only[0].tolist() == [[[5, 6], [7, 8]]]
    assert box_only[1].tolist() == [[TOP_LEFT, BOTTOM_RIGHT]]
    with pytest.raises(ValueError, match="points or a box"):
        assemble_points(None, None, None)


def test_every_label_has_its_own_token(prompt_encoder: Any) -> None:
    labels = torch.tensor([[IGNORE, PADDING, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT]])
    coords = torch.tensor([[[12.0, 34]]]).expand(1, 6, 2)
    tokens = prompt_encoder.sparse(coords, labels.float(), SIZE)[0]
    position = prompt_encoder.pe_layer((coords[0, :1] + 0.5) / SIZE)[0]
    assert not tokens[0].any()
    assert torch.equal(tokens[1], prompt_encoder.not_a_point_embed.weight[0])
    for token, learned in zip(tokens[2:], prompt_encoder.point_embeddings, strict=True):
        torch.testing.assert_close(token, position + learned.weight[0])


def test_a_click_on_a_cell_has_the_cells_own_position(prompt_encoder: Any) -> None:
    # Cell (2, 1) of the embedding covers pixels 32..47 by 16..31; its centre is between two pixels.
    click = torch.tensor([[[39.5, 23.5]]])
    token = prompt_encoder.sparse(click, torch.ones(1, 1), SIZE)[0, 0]
    cell = prompt_encoder.pe_layer.grid(SIDE)[0, :, 1, 2]
    torch.testing.assert_close(token - prompt_encoder.point_embeddings[1].weight[0], cell)


def test_a_mask_input_of_another_size_is_refused(model: EdgeSam, embedding: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected 16 a side, got 256"):
        model.decode(
            embedding,
            box_xyxy=torch.tensor([[1.0, 1, 9, 9]]),
            mask_input=torch.zeros(1, 1, 256, 256),
        )


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_prompt_alone_equals_the_same_prompt_in_a_batch(
    model: EdgeSam, embedding: torch.Tensor, data: st.DataObject
) -> None:
    prompts = data.draw(st.integers(2, 4), label="prompts")
    points = data.draw(st.integers(1, 4), label="points")
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 999), label="seed"))
    coords = SIZE * torch.rand(prompts, points, 2, generator=random)
    labels = torch.randint(-2, 2, (prompts, points), generator=random).float()
    mask = None
    if data.draw(st.booleans(), label="with a mask"):
        mask = 5 * torch.randn(prompts, 1, 4 * SIDE, 4 * SIDE, generator=random)
    with torch.no_grad():
        logits, iou = model.decode(
            embedding, point_coords=coords, point_labels=labels, mask_input=mask
        )
        for i in range(prompts):
            one = slice(i, i + 1)
            alone, alone_iou = model.decode(
                embedding,
                point_coords=coords[one],
                point_labels=labels[one],
                mask_input=None if mask is None else mask[one],
            )
            torch.testing.assert_close(logits[one], alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(iou[one], alone_iou, rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_do_not_see_each_other(model: EdgeSam) -> None:
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together = model.encode(images)
        for i in range(2):
            alone = model.encode(images[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
