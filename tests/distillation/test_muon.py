"""Muon against what it stands for: the orthogonal factor of a matrix, and AdamW for the rest."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from distillation.configs import EngineConfig
from distillation.muon import RMS, is_matrix, orthogonalise
from distillation.optimisation import build_optimizer
from edgesam_core.errors import RunError
from edgesam_core.nn.edge_sam import EdgeSam

CONFIG = EngineConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.1)


def step(student: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One step on random gradients."""
    torch.manual_seed(seed)
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("shape", [(24, 24), (16, 60), (60, 16)])
def test_an_orthogonalised_matrix_is_near_the_orthogonal_factor_of_its_decomposition(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 100
    turned = orthogonalise(matrix)
    sizes = torch.linalg.svdvals(turned)
    assert sizes.min() > 0.6
    assert sizes.max() < 1.25
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert nn.functional.cosine_similarity(turned.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_matrices_are_linear_layers_and_convolutions_across_channels() -> None:
    assert is_matrix(nn.Linear(32, 16).weight)
    assert is_matrix(nn.Conv2d(3, 24, 3).weight)
    assert not is_matrix(nn.Conv2d(32, 32, 3, groups=32).weight)  # depthwise
    assert not is_matrix(nn.Linear(32, 4).weight)
    assert not is_matrix(nn.Linear(32, 16).bias)


def test_every_parameter_of_the_network_is_in_one_group() -> None:
    network = EdgeSam()
    optimizer = build_optimizer(network, CONFIG)
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in network.parameters())
    (orthogonal,) = (g["params"] for g in optimizer.param_groups if g.get("orthogonal"))
    assert sum(p.numel() for p in orthogonal) > 0.95 * sum(p.numel() for p in network.parameters())
    embeddings = {id(p) for name, p in network.named_parameters() if "embed" in name}
    assert not embeddings & {id(p) for p in orthogonal}


def test_a_matrix_moves_by_the_learning_rate_and_the_rest_as_under_adamw() -> None:
    torch.manual_seed(1)
    student: Any = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 2))
    other = copy.deepcopy(student)
    before = copy.deepcopy(student)
    adamw = EngineConfig(learning_rate=0.01, weight_decay=0.1)
    step(student, build_optimizer(student, CONFIG), 0)
    step(other, build_optimizer(other, adamw), 0)
    kept = before[0].weight * (1 - 0.01 * 0.1)
    moved = (student[0].weight - kept).square().mean().sqrt().item()
    assert moved == pytest.approx(0.01 * RMS, rel=0.25)
    assert not torch.equal(student[0].weight, other[0].weight)
    assert torch.equal(student[0].bias, other[0].bias)
    assert torch.equal(student[1].weight, other[1].weight)


def test_a_loaded_state_goes_on_with_the_same_bits() -> None:
    torch.manual_seed(2)
    student = nn.Linear(64, 32)
    optimizer = build_optimizer(student, CONFIG)
    for seed in range(3):
        step(student, optimizer, seed)
    copied = copy.deepcopy(student)
    loaded = build_optimizer(copied, CONFIG)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(student, optimizer, 3)
    step(copied, loaded, 3)
    assert torch.equal(student.weight, copied.weight)
    assert torch.equal(student.bias, copied.bias)


def test_an_unknown_optimiser_is_named() -> None:
    unknown: Any = "sgd"
    with pytest.raises(RunError, match="optimizer: expected adamw or muon, got sgd"):
        EngineConfig(optimizer=unknown)
