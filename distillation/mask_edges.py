"""Do a project's masks end where the image shows an edge?

A check that needs neither prompts nor a model: an honest outline follows stronger gradients than
the same outline moved aside; one that was moved, or belongs to another image, does not. Where few
do, nothing that was learnt from the masks may serve (gate_verdict.py), however well a challenger
has learnt to repeat them. Masks exchanged between the regions of one image pass: without prompts
nothing is wrong with them.
"""

from __future__ import annotations

import cv2
import numpy as np

from distillation.project_set import ProjectSet
from edgesam_core.arrays import ImageRGB, Mask

DIRECTIONS = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y])
"""Ways in which an outline is moved: to its eight sides."""

FEWEST_BEATEN = 0.75
"""Share of the moved outlines that an outline must beat."""


def ends_on_edges(gradient: np.ndarray, mask: Mask) -> bool:
    """Whether a mask's outline crosses stronger gradients than itself moved.

    It is moved by a half of its size and by a quarter, to all sides.

    Args:
        gradient: [H, W] float32, how strongly the image changes.
        mask: [H, W] bool; one without an outline inside the image ends nowhere.
    """
    thin = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1)
    rows, columns = np.nonzero(mask & (thin == 0))  # what the image's border cuts is no outline
    if len(rows) < 8:
        return False
    height, width = mask.shape
    own = gradient[rows, columns].mean()
    far = max(6.0, (np.ptp(rows) + np.ptp(columns)) / 4) * DIRECTIONS
    beaten = []
    for right, down in np.round(np.concatenate([far, far / 2])).astype(int):
        x, y = columns + right, rows + down
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        if inside.mean() >= 0.5:
            beaten.append(own > gradient[y[inside], x[inside]].mean())
    return not beaten or bool(np.mean(beaten) >= FEWEST_BEATEN)


def gradient_of(image: ImageRGB) -> np.ndarray:
    """[H, W] float32: the strongest channel's change, a little smoothed."""
    smooth = cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.float32)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    strength: np.ndarray = np.hypot(across, down).max(axis=2)
    return cv2.dilate(strength, np.ones((3, 3), np.uint8))  # an outline may be a pixel beside


def masks_on_edges(project: ProjectSet, *, most: int = 40, per_image: int = 5) -> tuple[int, int]:
    """How many masks end where the image shows an edge, and how many were looked at.

    Args:
        project: One half of a snapshot.
        most: At most so many images are looked at.
        per_image: And so many regions of each.

    Raises:
        RunError: An image or mask cannot be read.
    """
    rng = np.random.default_rng(0)
    fit, looked_at = 0, 0
    for index in rng.permutation(len(project.images))[:most]:
        annotated = project.images[index]
        gradient = gradient_of(annotated.read())
        for i in rng.permutation(len(annotated.instances))[:per_image]:
            fit += ends_on_edges(gradient, annotated.instances[i].mask())
            looked_at += 1
    return fit, looked_at
