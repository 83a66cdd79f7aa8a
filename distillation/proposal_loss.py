"""What the granularity prior is told: which anchors show an object, and how their boxes differ.

Every labelled object is one class, "object". An anchor shows the object that it overlaps best, if
their IoU is at least 0.5; each object also gets the anchors that overlap it best, however little.
All others are background. Focal loss on all anchors, Huber loss on those that show something.

Source:
    EdgeSAM (arXiv 2312.06660), section 3.3, names "focal loss and Huber loss" and no numbers, and
    its repository has no code for this stage. Numbers and normalisation are those of MMDetection's
    EfficientDet, whose network it uses: focal loss (arXiv 1708.02002) with gamma 1.5 and alpha
    0.25, its sum divided by the positive anchors; Huber loss with beta 0.1 and weight 50, its sum
    divided by four times as many. There, an object that no anchor touches claims all of them;
    here it claims none.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

MIN_IOU = 0.5
FOCAL_GAMMA, FOCAL_ALPHA = 1.5, 0.25
HUBER_BETA, BOX_WEIGHT = 0.1, 50.0


def proposal_loss(
    objectness_logits: torch.Tensor,
    deltas: torch.Tensor,
    anchors: torch.Tensor,
    boxes: torch.Tensor,
    image_of_box: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of a batch.

    Args:
        objectness_logits: [I, A].
        deltas: [I, A, 4].
        anchors: [A, 4] x0, y0, x1, y1 in the frame of the S x S input.
        boxes: [K, 4] of the labelled objects of all images, in the same frame.
        image_of_box: [K] which image each lies in.

    Returns:
        Three scalars: focal loss, Huber loss (weighted; their sum is to be descended), and how many
        anchors show an object.
    """
    matched = [
        assign(anchors, boxes[image_of_box == i]) for i in range(len(objectness_logits))
    ]  # [A] each
    positives = torch.stack([(index >= 0).sum() for index in matched])  # [I]
    divisor = positives.clamp_min(1).sum()
    is_object = torch.stack(matched) >= 0  # [I, A]
    objectness = focal_loss(objectness_logits, is_object.to(objectness_logits.dtype)).sum()
    wanted = torch.cat(
        [
            encode_boxes(anchors[index >= 0], boxes[image_of_box == i][index[index >= 0]])
            for i, index in enumerate(matched)
        ]
    )  # [positives, 4]
    box = huber_loss(deltas[is_object], wanted).sum()
    return objectness / divisor, BOX_WEIGHT * box / (4 * divisor), positives.sum()


@torch.no_grad()
def assign(anchors: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Which object every anchor shows.

    Args:
        anchors: [A, 4].
        boxes: [G, 4]; G may be 0.

    Returns:
        [A] int64, an index into ``boxes``, -1 for background. Where an anchor is the best of
        several objects, the last of them has it, as in MMDetection's ``MaxIoUAssigner``.
    """
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1, device=anchors.device)
    iou = box_iou(anchors, boxes)  # [A, G]
    best_iou, best = iou.max(dim=1)
    matched = torch.where(best_iou >= MIN_IOU, best, -1)
    of_object = iou.amax(dim=0)  # [G]
    is_best = (iou == of_object) & (of_object > 0)
    last = len(boxes) - 1 - is_best.flip(1).int().argmax(dim=1)
    return torch.where(is_best.any(dim=1), last, matched)


def box_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU of every box of one list with every box of another: [A, 4], [G, 4] -> [A, G]."""
    overlap = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    shared = overlap.clamp_min(0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def encode_boxes(anchors: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """The deltas that turn anchors into boxes: [P, 4] each; ``decode_boxes`` undoes it."""
    sides, wanted_sides = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2 / sides
    return torch.cat([shift, (wanted_sides / sides).log()], dim=1)


def focal_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy that counts little where the answer is right already; shapes are equal."""
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    wrong = torch.where(targets > 0, 1 - probability, probability)
    weight = torch.where(targets > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return weight * wrong**FOCAL_GAMMA * bce


def huber_loss(deltas: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Quadratic up to ``HUBER_BETA``, linear beyond; shapes are equal."""
    return F.huber_loss(deltas, targets, reduction="none", delta=HUBER_BETA)
