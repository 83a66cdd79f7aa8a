"""The granularity stage's loss against an independent computation, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from distillation.proposal_loss import (
    assign,
    box_iou,
    encode_boxes,
    focal_loss,
    huber_loss,
    proposal_loss,
)
from edgesam_core.granularity import anchors, decode_boxes

SIZE = 64
Array = npt.NDArray[Any]


def iou(a: Array, b: Array) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def in_numpy(logits: Array, deltas: Array, table: Array, images: list[Array]) -> float:
    """The whole loss in plain loops and float64, from the formulas of the papers."""
    focal = huber = 0.0
    positives = []
    for image, boxes in enumerate(images):
        shows: dict[int, int] = {}
        for a, anchor in enumerate(table):
            overlaps = [iou(anchor, box) for box in boxes]
            if overlaps and max(overlaps) >= 0.5:
                shows[a] = int(np.argmax(overlaps))
        for g, box in enumerate(boxes):
            overlaps = [iou(anchor, box) for anchor in table]
            for a, overlap in enumerate(overlaps):
                if overlap == max(overlaps) and overlap > 0:
                    shows[a] = g
        positives.append(len(shows))
        for a in range(len(table)):
            p = 1 / (1 + np.exp(-logits[image, a]))
            if a in shows:
                focal += 0.25 * (1 - p) ** 1.5 * -np.log(p)
            else:
                focal += 0.75 * p**1.5 * -np.log(1 - p)
        for a, g in shows.items():
            anchor, box = table[a], boxes[g]
            w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
            wanted = [
                ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / w,
                ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / h,
                np.log((box[2] - box[0]) / w),
                np.log((box[3] - box[1]) / h),
            ]
            for d in np.abs(deltas[image, a] - wanted):
                huber += 0.5 * d * d if d < 0.1 else 0.1 * d - 0.5 * 0.1**2
    divisor = sum(max(1, count) for count in positives)
    return float(focal / divisor + 50 * huber / (4 * divisor))


def random_case(seed: int) -> tuple[Array, Array, list[Array]]:
    random = np.random.default_rng(seed)
    count = len(anchors(SIZE))
    logits, deltas = random.normal(-1, 1.5, (3, count)), random.normal(0, 0.3, (3, count, 4))
    images = []
    for objects in (2, 0, 3):  # one image without any
        corners = random.uniform(0, SIZE - 12, (objects, 2))
        images.append(np.concatenate([corners, corners + random.uniform(6, 40, (objects, 2))], 1))
    return logits, deltas, images


def torch_loss(logits: torch.Tensor, deltas: torch.Tensor, images: list[Array]) -> torch.Tensor:
    boxes = torch.from_numpy(np.concatenate(images))
    image_of_box = torch.from_numpy(np.repeat(np.arange(len(images)), [len(b) for b in images]))
    table = torch.from_numpy(anchors(SIZE).astype(np.float64))
    objectness, box, _ = proposal_loss(logits, deltas, table, boxes, image_of_box)
    return objectness + box


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_equals_the_formulas(seed: int) -> None:
    logits, deltas, images = random_case(seed)
    actual = torch_loss(torch.from_numpy(logits), torch.from_numpy(deltas), images)
    expected = in_numpy(logits, deltas, anchors(SIZE).astype(np.float64), images)
    assert actual.item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_equals_differences_of_the_formulas() -> None:
    logits, deltas, images = random_case(2)
    tensors = [torch.from_numpy(array).requires_grad_() for array in (logits, deltas)]
    torch_loss(tensors[0], tensors[1], images).backward()
    table = anchors(SIZE).astype(np.float64)
    gradients = [tensor.grad.numpy() for tensor in tensors if tensor.grad is not None]
    shown = np.argwhere(np.abs(gradients[1]).sum(axis=2) > 0)
    assert len(shown) > 5
    for index in (tuple(shown[0]), tuple(shown[-1]), (1, 7)):
        for array, gradient in zip((logits, deltas), gradients, strict=True):
            place = (*index, 1)[: array.ndim]
            kept, step = array[place], 1e-6
            array[place] = kept + step
            above = in_numpy(logits, deltas, table, images)
            array[place] = kept - step
            below = in_numpy(logits, deltas, table, images)
            array[place] = kept
            assert gradient[place] == pytest.approx((above - below) / (2 * step), abs=1e-7)


def test_focal_and_huber_loss_by_hand() -> None:
    focal = focal_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    expected = torch.tensor([0.25, 0.75]) * 0.5**1.5 * np.log(2)
    torch.testing.assert_close(focal, expected.float())
    huber = huber_loss(torch.tensor([0.05, 0.3]), torch.zeros(2))
    torch.testing.assert_close(huber, torch.tensor([0.00125, 0.025]))


def test_serving_undoes_what_training_encodes() -> None:
    random = np.random.default_rng(0)
    table = anchors(SIZE)[: 9 * 8 * 8]  # a coarse anchor would have to shrink more than it may
    corners = random.uniform(0, SIZE / 2, (len(table), 2))
    boxes = np.concatenate([corners, corners + random.uniform(1, SIZE / 2, corners.shape)], axis=1)
    deltas = encode_boxes(torch.from_numpy(table.copy()), torch.from_numpy(boxes).float())
    np.testing.assert_allclose(decode_boxes(table, deltas.numpy(), SIZE), boxes, atol=1e-3)


def test_a_small_object_gets_its_best_anchors_though_they_overlap_it_little() -> None:
    table = torch.from_numpy(anchors(SIZE).copy())
    speck = torch.tensor([[20.0, 20.0, 24.0, 24.0]])
    matched = assign(table, speck)
    overlaps = box_iou(table, speck)[:, 0]
    assert overlaps.max() < 0.5
    assert torch.equal(matched >= 0, overlaps == overlaps.max())


def test_an_object_outside_all_anchors_and_an_image_without_objects_match_nothing() -> None:
    table = torch.from_numpy(anchors(SIZE).copy())
    far = torch.tensor([[9000.0, 9000.0, 9010.0, 9010.0]])
    assert (assign(table, far) == -1).all()
    assert (assign(table, torch.zeros(0, 4)) == -1).all()
