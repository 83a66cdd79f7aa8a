"""What a predicted mask is measured by while learning.

Targets are soft: the share of each low-res cell that the object covers, so that the zero crossing
of the up-scaled logits can lie between cells.

Source: EdgeSAM (arXiv 2312.06660) uses BCE 5 + Dice 5 on the teacher's thresholded logits. With
masks as the only teacher and objects from specks to half an image, a plain mean over all pixels let
every mask collapse to empty; here BCE is averaged inside and outside a neighbourhood of the object
separately, which makes it independent of the object's size.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - Dice per mask: logits and targets [..., h, w] -> [...], 0 (equal) to 1 (disjoint)."""
    probability = logits.sigmoid()
    overlap = (probability * targets).sum(dim=(-2, -1))
    total = probability.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (total + 1)


def neighbourhood(targets: torch.Tensor, margin: int) -> torch.Tensor:
    """Cells within ``margin`` cells of the object: [B, h, w] soft targets -> [B, h, w] 0 or 1."""
    near = F.max_pool2d(targets[:, None], kernel_size=2 * margin + 1, stride=1, padding=margin)
    return (near[:, 0] > 0).to(targets.dtype)


def balanced_bce(
    logits: torch.Tensor, targets: torch.Tensor, near: torch.Tensor, *, outside: float
) -> torch.Tensor:
    """Binary cross-entropy, averaged near the object and away from it separately.

    Args:
        logits: [B, M, h, w].
        targets: [B, 1, h, w] soft, 0 to 1.
        near: [B, 1, h, w] from ``neighbourhood``.
        outside: Weight of the mean away from the object beside 1 for the mean near it.

    Returns:
        [B, M].
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets.expand_as(logits), reduction="none")
    far = 1 - near
    mean_near = (bce * near).sum(dim=(-2, -1)) / near.sum(dim=(-2, -1)).clamp_min(1)
    mean_far = (bce * far).sum(dim=(-2, -1)) / far.sum(dim=(-2, -1)).clamp_min(1)
    return mean_near + outside * mean_far


def soft_iou(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """IoU of the thresholded masks: [..., h, w] -> [...], no gradient."""
    with torch.no_grad():
        predicted, wanted = logits > 0, targets > 0.5
        overlap = (predicted & wanted).sum(dim=(-2, -1)).float()
        union = (predicted | wanted).sum(dim=(-2, -1)).float()
        return overlap / union.clamp_min(1)


def mask_loss(
    logits: torch.Tensor,
    iou_predictions: torch.Tensor,
    targets: torch.Tensor,
    *,
    several: bool,
    iou_weight: float,
) -> torch.Tensor:
    """The loss of one decoding round.

    Mask 0 answers every prompt. After a single ambiguous click, masks 1 to 3 share a second loss,
    of which only the best of the three counts: they can specialise in parts and wholes.

    Args:
        logits: [B, 4, h, w].
        iou_predictions: [B, 4].
        targets: [B, h, w] soft, 0 to 1.
        several: Whether the prompt is a single click.
        iou_weight: Weight of the squared error of ``iou_predictions``.

    Returns:
        A scalar.

    Source:
        SAM appendix A, "Losses and training": minimum over the masks; here over masks 1 to 3 only.
    """
    used = logits if several else logits[:, :1]
    target = targets[:, None]
    near = neighbourhood(targets, margin=max(2, targets.shape[-1] // 16))[:, None]
    per_mask = balanced_bce(used, target, near, outside=0.5) + dice_loss(used, target)
    loss = per_mask[:, 0].mean()
    if several:
        loss = loss + 0.5 * per_mask[:, 1:].amin(dim=1).mean()
    iou_error = (iou_predictions[:, : used.shape[1]] - soft_iou(used, target)).square().mean()
    return loss + iou_weight * iou_error
