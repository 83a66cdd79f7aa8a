"""What a student is measured by while learning.

Two families. With a network as the teacher, the published losses: squared error between embeddings
(``embedding_loss``, stage 1), and BCE 5 + Dice 5 on the teacher's masks (``network_teacher_loss``,
stage 2). With masks as the only teacher ``masks_teacher_loss``: objects there run from specks to
half an image, and a plain mean over all pixels let every mask collapse to empty, so that BCE is
averaged inside and outside a neighbourhood of the object separately, which makes it independent of
the object's size.

Targets are soft: the share of each low-res cell that the object covers, so that the zero crossing
of the up-scaled logits can lie between cells.

Papers: EdgeSAM (arXiv 2312.06660), section 3; TinySAM (arXiv 2312.13789) for hard-mask weighting.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

MASK_WEIGHT = 5.0
"""Of BCE and of Dice alike. Source: EdgeSAM's stage-2 configuration."""


def embedding_loss(
    student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Squared error between embeddings where the image is, stage 1's whole loss.

    Args:
        student: [I, 256, s, s].
        teacher: The same shape.
        valid: [I, s, s], 1 for cells of the image, 0 for padding; at least one cell of each image.

    Returns:
        A scalar: the mean over channels, then over an image's valid cells, then over images, so
        that a narrow image counts as much as a square one.

    Source:
        EdgeSAM's stage-1 code, which divides each image's error by the cells of every image of the
        batch in turn (a broadcast that was not meant); equal where all have one shape. Its
        channel-wise KL and correlation losses, off there, are left out.
    """
    error = (student - teacher).square().mean(dim=1)  # [I, s, s]
    return ((error * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))).mean()


def network_teacher_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    valid: torch.Tensor,
    *,
    rounds: int,
    hardness: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of one decoding round under a network; the step's is the sum over its rounds.

    Args:
        logits: [B, M, h, w], as many of the student's masks as the teacher answered with.
        targets: [B, M, h, w], the teacher's masks, 0 to 1.
        valid: [B, 1, h, w], share of each cell that is image and not padding.
        rounds: Decoding rounds of the step, by which the loss is divided.
        hardness: [B, M] from ``mask_hardness``, or None to count every mask alike.

    Returns:
        A scalar.

    Source:
        The code averages a prompt's BCE over its masks and pixels together. All masks of a prompt
        have the same pixels, so this is the mean over masks of ``valid_bce``.
    """
    per_mask = valid_bce(logits, targets, valid) + valid_dice(logits, targets, valid)  # [B, M]
    if hardness is not None:
        per_mask = per_mask * hardness
    return MASK_WEIGHT / rounds * per_mask.mean()


def valid_bce(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, averaged over the image without its padding: [B, M].

    Source: the code takes it from sigmoid outputs, which in fp32 are exactly 1 from a logit of 17
    on: a confident mistake then teaches nothing. From logits the values are the same elsewhere.
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (bce * valid).sum(dim=(-2, -1)) / valid.sum(dim=(-2, -1))


def valid_dice(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """1 - Dice of the image without its padding: [B, M].

    Source: the code weighs both sides, so a border cell counts with its square in the overlap.
    """
    probability, wanted = logits.sigmoid() * valid, targets * valid
    overlap = (probability * wanted).sum(dim=(-2, -1))
    total = probability.sum(dim=(-2, -1)) + wanted.sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (total + 1)


def thresholded_iou(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """IoU of logits cut at 0 with soft targets cut at 0.5: [..., h, w] -> [...], no gradient."""
    with torch.no_grad():
        predicted, wanted = logits > 0, targets > 0.5
        overlap = (predicted & wanted).sum(dim=(-2, -1)).float()
        union = (predicted | wanted).sum(dim=(-2, -1)).float()
        return overlap / union.clamp_min(1)


def mask_hardness(logits: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """How far the student lags behind its teacher, as a weight for each mask: [B, M], no gradient.

    0.5 where both are as good; near 1 where the teacher finds the object and the student does not;
    down to 0.27 where the teacher itself is wrong and the student is not.

    Args:
        logits: [B, M, h, w], the student's.
        targets: [B, M, h, w], the teacher's masks.
        masks: [B, h, w], what is really there; the teacher's own best mask where nobody knows.

    Source:
        TinySAM, "Hard mask weighting": sigmoid(IoU(teacher, truth) / (IoU(student, truth) + eps)
        - 1); eps is ours, for a student that found nothing.
    """
    truth = masks[:, None]
    teacher_iou = thresholded_iou(targets - 0.5, truth)  # as logits, which are cut at 0
    return torch.sigmoid(teacher_iou / (thresholded_iou(logits, truth) + 1e-6) - 1)


def iou_token_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared error between both networks' IoU predictions [B, M]: a scalar.

    Source: EdgeSAM leaves the IoU token out; its head gets no gradient, and keeps SAM's weights
    under a transformer that moved away from them.
    """
    return (student - teacher).square().mean()


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


def masks_teacher_loss(
    logits: torch.Tensor,
    iou_predictions: torch.Tensor,
    targets: torch.Tensor,
    *,
    several: bool,
    iou_weight: float,
) -> torch.Tensor:
    """The loss of one decoding round where masks are the teacher.

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
    iou_errors = iou_predictions[:, : used.shape[1]] - thresholded_iou(used, target)
    return loss + iou_weight * iou_errors.square().mean()
