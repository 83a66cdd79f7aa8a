"""Boxes, first clicks and corrective clicks lie where they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distillation.prompt_sampling import corrective_click, draw_box, draw_point


@pytest.fixture
def ring() -> np.ndarray:
    y, x = np.mgrid[:96, :96]
    distance = np.hypot(x - 40, y - 50)
    return ((distance < 30) & (distance > 18)).astype(np.uint8) * 255


def test_a_click_lies_on_the_object_even_where_its_middle_is_a_hole(ring: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = draw_point(rng, ring).astype(int)
        assert ring[y, x]


def test_half_of_the_boxes_are_exact_and_all_lie_in_the_image(ring: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([draw_box(rng, ring, jitter=0.1) for _ in range(400)])
    rows, columns = np.nonzero(ring)
    exact = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    share = (boxes == exact).all(axis=1).mean()
    assert 0.4 < share < 0.6
    assert boxes.min() >= 0
    assert boxes.max() <= 96
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_missed_cell_gets_a_positive_and_a_spilled_one_a_negative_click() -> None:
    target = torch.zeros(2, 16, 16, dtype=torch.bool)
    target[:, 4:8, 4:8] = True
    predicted = torch.zeros_like(target)
    predicted[1] = target[1]
    predicted[1, 10:12, 10:12] = True
    coords, labels = corrective_click(predicted, target)
    assert labels[:, 0].tolist() == [1, 0]
    cells = ((coords[:, 0] + 0.5) / 4).floor().long()
    assert target[0, cells[0, 1], cells[0, 0]]
    assert predicted[1, cells[1, 1], cells[1, 0]]
    assert not target[1, cells[1, 1], cells[1, 0]]


def test_an_answer_that_is_right_gets_the_ignore_token() -> None:
    target = torch.zeros(1, 16, 16, dtype=torch.bool)
    target[:, 4:8, 4:8] = True
    _, labels = corrective_click(target.clone(), target)
    assert labels.item() == -2
