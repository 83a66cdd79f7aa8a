"""The losses against values worked out by hand, and the properties they were chosen for."""

from __future__ import annotations

import pytest
import torch

from distillation.losses import (
    balanced_bce,
    dice_loss,
    masks_teacher_loss,
    neighbourhood,
    thresholded_iou,
)


def disc(radius: float, side: int = 64) -> torch.Tensor:
    axis = torch.arange(side) - side / 2 + 0.5
    return ((axis[:, None] ** 2 + axis[None] ** 2) < radius**2).float()


def test_dice_is_zero_for_the_target_and_near_one_for_its_opposite() -> None:
    target = disc(12)[None]
    assert dice_loss(target * 80 - 40, target).item() == pytest.approx(0, abs=1e-5)
    assert dice_loss(40 - target * 80, target).item() > 0.99


def test_dice_equals_the_formula_for_even_odds() -> None:
    target = torch.zeros(1, 2, 2)
    target[0, 0, 0] = 1
    # p = 0.5 everywhere: 1 - (2 * 0.5 + 1) / (4 * 0.5 + 1 + 1)
    assert dice_loss(torch.zeros(1, 2, 2), target).item() == pytest.approx(0.5)


@pytest.mark.parametrize("radius", [3, 10, 25])
def test_an_empty_answer_costs_about_the_same_for_small_and_large_objects(radius: float) -> None:
    target = disc(radius)[None]
    near = neighbourhood(target, margin=4)[:, None]
    empty = torch.full((1, 1, 64, 64), -4.0)
    loss = balanced_bce(empty, target[:, None], near, outside=0.5)
    assert 0.5 < loss.item() < 4


def test_thresholded_iou_counts_cells() -> None:
    target = torch.zeros(1, 4, 4)
    target[0, :2] = 1
    logits = torch.full((1, 4, 4), -1.0)
    logits[0, 1:3] = 1
    assert thresholded_iou(logits, target).item() == pytest.approx(4 / 12)


def test_only_the_best_of_the_three_candidates_learns_from_an_ambiguous_click() -> None:
    target = disc(10)[None]
    logits = torch.zeros(1, 4, 64, 64)
    logits[:, 2] = target * 4 - 2  # the best of masks 1 to 3
    logits.requires_grad_()
    loss = masks_teacher_loss(logits, torch.zeros(1, 4), target, several=True, iou_weight=0.0)
    loss.backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(dim=(0, 2, 3)) > 0
    assert moved.tolist() == [True, False, True, False]


def test_after_a_box_only_mask_zero_learns() -> None:
    target = disc(10)[None]
    logits = torch.zeros(1, 4, 64, 64, requires_grad=True)
    masks_teacher_loss(logits, torch.zeros(1, 4), target, several=False, iou_weight=0.1).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(dim=(0, 2, 3)) > 0).tolist() == [True, False, False, False]
