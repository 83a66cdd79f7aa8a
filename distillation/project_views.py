"""The few fixed ways in which a project's image is looked at.

Whole as in serving, its mirror image, and cut out around regions. They are fixed so that the frozen
trunk needs to see each of them once (feature_cache.py). Pixels, masks and stored prompts go through
a view by the same matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from distillation.data import warp, window_matrix
from distillation.project_set import ProjectImage
from edgesam_core.decode import Prompt

WHOLE_VIEWS = (0, 1)
"""Numbers of the views that show the whole image."""


@dataclass(frozen=True)
class View:
    """One of the fixed ways to look at an image."""

    matrix: np.ndarray
    """[2, 3], pixels of the image -> pixels of the S x S input."""
    scale: float


def view_of(image: ProjectImage, number: int, size: int, seed: int) -> View:
    """View 0 is the whole image as in serving, view 1 its mirror image, the others are windows.

    A window lies around a region, flipped in half of the cases, and is a third of the image's long
    side or more.
    """
    height, width = image.image.shape[:2]
    long_side = float(max(height, width))
    if number in WHOLE_VIEWS:
        scale = size / long_side
        return View(_fitted(0.0, 0.0, scale, width, flip=number == 1), scale)
    rng = np.random.default_rng((seed, image.image_id, number))
    x0, y0, x1, y1 = image.boxes_xyxy[rng.integers(len(image.boxes_xyxy))]
    extent = max(x1 - x0, y1 - y0)
    side = float(np.clip(extent * np.exp(rng.uniform(0.2, 1.6)), long_side / 3, long_side))
    left = x0 - rng.uniform(0.05, 0.95) * max(side - (x1 - x0), 0.0)
    top = y0 - rng.uniform(0.05, 0.95) * max(side - (y1 - y0), 0.0)
    scale = size / side
    return View(window_matrix(left, top, scale, size, flip=bool(rng.random() < 0.5)), scale)


def _fitted(x0: float, y0: float, scale: float, width: int, *, flip: bool) -> np.ndarray:
    """The whole image at the upper left, its padding to the right and below also when flipped."""
    matrix = np.array([[scale, 0, -x0 * scale], [0, scale, -y0 * scale]], np.float64)
    if flip:
        matrix[0] = [-scale, 0, (width - 1) * scale]
    return matrix


def look_through(view: View, array: np.ndarray, size: int, *, border: Any = 0) -> np.ndarray:
    """Pixels [H, W, ...] uint8 through a view: [S, S, ...]."""
    way = cv2.INTER_AREA if view.scale < 0.6 else cv2.INTER_LINEAR
    return warp(array, view.matrix, view.scale, size, way, border=border)


def seen_through(view: View, prompt: Prompt, size: int) -> Prompt | None:
    """A stored prompt in a view's frame; None where it leaves the view."""
    linear, shift = view.matrix[:, :2], view.matrix[:, 2]
    # A stored click counts from the image's corner, one in a batch is its pixel's index.
    points = ((prompt.point_coords - 0.5) @ linear.T + shift).astype(np.float32)
    box = prompt.box_xyxy
    if box is not None:
        corners = (box.reshape(2, 2) - 0.5) @ linear.T + shift + 0.5
        box = np.concatenate([corners.min(axis=0), corners.max(axis=0)]).astype(np.float32)
    everything = np.concatenate([points, np.zeros((0, 2)) if box is None else box.reshape(2, 2)])
    if (everything < 0).any() or (everything > size).any():
        return None
    return Prompt(points, prompt.point_labels, box)
