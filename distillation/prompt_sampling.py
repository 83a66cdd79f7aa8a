"""Prompts for the loop: first a box or a click, then clicks where the prediction is wrong.

Boxes and first clicks are drawn in NumPy beside the data; corrective clicks are drawn on the device
from the disagreement between prediction and target, at the resolution of the low-res logits. A
click is the index of a pixel, as SAM's prompt encoder wants it, which adds the half pixel to its
centre by itself; measuring (prompt_points.py) and serving count from the corner of the image, where
the same click is at + 0.5.

Paper: EdgeSAM (arXiv 2312.06660), algorithm 1; SAM (arXiv 2304.02643), appendix A, "Training
algorithm".
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

MIN_WRONG_CELLS = 3
"""Fewer wrong cells of S/4 x S/4 draw no click; the label is then -2, EdgeSAM's "ignore" token.

Source: EdgeSAM uses 10 of the 256 x 256 cells of S = 1024, and so does our evaluation, whose grid
is always that fine (prompt_points.py). Here the grid shrinks with the crop: at S = 256 the same
share of it is less than one cell, and 10 cells can be a whole object.
"""


def draw_box(rng: np.random.Generator, mask: np.ndarray, *, jitter: float) -> np.ndarray:
    """A box as a person would drag it around a mask.

    Args:
        rng: Source of randomness.
        mask: [S, S] uint8 or bool with at least one pixel.
        jitter: Standard deviation of each edge as a share of the box's side; half of all boxes are
            exact. SAM uses 0.1, at most 20 pixels.

    Returns:
        [4] float32 x0, y0, x1, y1: pixel edges in the crop's frame, at least one pixel wide.
    """
    x, y, w, h = cv2.boundingRect(np.ascontiguousarray(mask, dtype=np.uint8))
    box = np.array([x, y, x + w, y + h], np.float32)
    if rng.random() < 0.5:
        noise = rng.normal(0, jitter, 4) * (w, h, w, h)
        box += np.clip(noise, -20, 20).astype(np.float32)
        box[2:] = np.maximum(box[2:], box[:2] + 1)
    return np.clip(box, 0, mask.shape[0])


def draw_point(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A click on an object: half of the time its innermost pixel, else any pixel of it.

    Returns:
        [2] float32 (x, y), a pixel's index in the crop.
    """
    if rng.random() < 0.5:
        return innermost_point(mask)
    rows, columns = np.nonzero(mask)
    i = rng.integers(len(rows))
    return np.array([columns[i], rows[i]], np.float32)


def innermost_point(mask: np.ndarray) -> np.ndarray:
    """The pixel of a mask that is farthest from its edge: [2] float32 (x, y)."""
    padded = np.pad(np.ascontiguousarray(mask, dtype=np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return np.array([x - 1, y - 1], np.float32)


def corrective_click(
    predicted: torch.Tensor, target: torch.Tensor, *, cell: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """One click per prompt, uniformly among the cells where prediction and target disagree.

    Args:
        predicted: [B, h, w] bool.
        target: [B, h, w] bool.
        cell: Pixels of the input per cell.

    Returns:
        Coordinates [B, 1, 2] (x, y) of cell centres in the input's frame, and labels [B, 1]: 1 for
        a missed cell, 0 for a spilled one, -2 where too few cells are wrong.
    """
    wrong = predicted ^ target
    batch, _, width = wrong.shape
    flat = wrong.flatten(1)
    noise = torch.rand(flat.shape, device=flat.device)
    index = torch.where(flat, noise, -1.0).argmax(dim=1)
    y, x = index // width, index % width
    coords = (torch.stack([x, y], dim=-1).float() + 0.5) * cell - 0.5
    labels = target.flatten(1).gather(1, index[:, None]).float()
    enough = flat.sum(1, keepdim=True) >= MIN_WRONG_CELLS
    labels = torch.where(enough, labels, torch.full_like(labels, -2))
    return coords.reshape(batch, 1, 2), labels
