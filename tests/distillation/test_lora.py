"""Low-rank additions: nothing at first, all of what learns later, gone after merging."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from distillation.lora import AdaptedLinear, add_adapters, merge_adapters
from edgesam_core.nn.checkpoint import official_state_dict
from edgesam_core.nn.edge_sam import EdgeSam


@pytest.fixture
def model() -> EdgeSam:
    torch.manual_seed(0)
    return EdgeSam().eval()


def answer(model: EdgeSam) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(1, 256, 4, 4, generator=generator)
    box_xyxy = torch.tensor([[8.0, 10.0, 40.0, 50.0]])
    logits, _ = model.decode(embedding, box_xyxy=box_xyxy)
    return logits


def teach_something(model: EdgeSam) -> None:
    for layer in model.modules():
        if isinstance(layer, AdaptedLinear):
            torch.nn.init.normal_(layer.up, std=0.1)


def test_an_untrained_addition_changes_nothing(model: EdgeSam) -> None:
    before = answer(model)
    add_adapters(model, rank=16)
    assert torch.equal(answer(model), before)


def test_only_the_additions_learn_in_the_decoder(model: EdgeSam) -> None:
    add_adapters(model, rank=16)
    answer(model).sum().backward()
    decoder = dict(model.mask_decoder.named_parameters())
    learning = {name for name, p in decoder.items() if p.grad is not None and p.grad.any()}
    # The gradient of `down` is zero as long as `up` is.
    assert len(learning) == 14
    assert all(name.endswith(("q_proj.up", "v_proj.up")) for name in learning)
    assert sum(p.numel() for p in decoder.values() if p.requires_grad) == 94_208


def test_merged_weights_answer_like_the_adapted_ones(model: EdgeSam) -> None:
    before = answer(model)
    add_adapters(model, rank=4)
    teach_something(model)
    adapted = answer(model)
    merge_adapters(model)
    assert (adapted - before).abs().max() > 0.01
    torch.testing.assert_close(answer(model), adapted, rtol=1e-4, atol=1e-5)


def test_the_published_tensors_come_out_of_merging(model: EdgeSam, shared: Path) -> None:
    add_adapters(model, rank=16)
    merged = copy.deepcopy(model)
    merge_adapters(merged)
    shapes = {k: list(v.shape) for k, v in official_state_dict(merged).items()}
    assert shapes == json.loads((shared / "parity" / "state_dict_keys.json").read_text())
    assert any(isinstance(layer, AdaptedLinear) for layer in model.modules())


def test_a_model_without_additions_is_left_alone(model: EdgeSam) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    merge_adapters(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
