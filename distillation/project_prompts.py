"""What is asked of a view: regions with a first box and click, and places that nobody annotated.

Frames: everything here is in pixels of the S x S view, a click at its pixel's index.
"""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from distillation.project_set import ProjectImage
from distillation.project_views import View, look_through, seen_through
from distillation.prompt_sampling import draw_box, draw_point
from edgesam_core.decode import Prompt

MIN_SEEN = 0.3
"""A region of which less than this share of its box lies in the view is not asked for."""

MIN_PX = 16
"""Nor one that covers fewer pixels of the view."""

FEWEST_FREE = 0.05
"""Nothing is asked outside the regions where less than this share of the view is free."""


def shown_regions(
    rng: np.random.Generator, image: ProjectImage, view: View, size: int, *, most: int
) -> list[tuple[int, np.ndarray]]:
    """Regions that the view shows, in random order.

    Args:
        rng: Draws the order.
        image: With its regions.
        view: A look at it.
        size: S of the view.
        most: At most so many.

    Returns:
        Index into the image's regions, and mask [S, S] uint8, 0 or 255.
    """
    corners = image.boxes_xyxy.reshape(-1, 2) @ view.matrix[:, :2].T + view.matrix[:, 2]
    corners = np.sort(corners.reshape(-1, 2, 2), axis=1)  # a flip exchanges left and right
    whole = np.prod(corners[:, 1] - corners[:, 0], axis=1)
    inside = np.clip(corners, 0, size)
    share = np.prod(inside[:, 1] - inside[:, 0], axis=1) / np.maximum(whole, 1e-6)
    shown: list[tuple[int, np.ndarray]] = []
    for index in rng.permutation(np.flatnonzero(share >= MIN_SEEN)):
        full = coco_mask.decode(image.coco_rles[index]) * 255
        mask = np.where(look_through(view, full, size) > 127, 255, 0).astype(np.uint8)
        if np.count_nonzero(mask) >= MIN_PX:
            shown.append((int(index), mask))
        if len(shown) == most:
            break
    return shown


def free_pixels(image: ProjectImage, view: View, size: int, valid: np.ndarray) -> np.ndarray | None:
    """Pixels of the view that no region covers.

    Args:
        image: With its regions.
        view: A look at it.
        size: S of the view.
        valid: [S, S] uint8, 255 where the view shows the image.

    Returns:
        [S, S] bool; None where there are few.
    """
    union = coco_mask.decode(coco_mask.merge(list(image.coco_rles))) * 255
    free = (look_through(view, union, size) == 0) & (valid > 127)
    return free if free.mean() > FEWEST_FREE else None


def prompts_inside(
    rng: np.random.Generator,
    mask: np.ndarray,
    stored: Prompt | None,
    view: View,
    *,
    stored_share: float,
    box_jitter: float,
) -> tuple[np.ndarray, np.ndarray]:
    """A box [4] and a click [2] for a region: the annotator's own now and then, else drawn.

    Args:
        rng: Draws them.
        mask: [S, S] uint8 of the region.
        stored: The annotator's, in pixels of the image; None where it is not known.
        view: A look at the image.
        stored_share: How often the annotator's is taken.
        box_jitter: As in the recipe.
    """
    box = draw_box(rng, mask, jitter=box_jitter)
    point = draw_point(rng, mask)
    if stored is None or rng.random() >= stored_share:
        return box, point
    theirs = seen_through(view, stored, mask.shape[0])
    if theirs is None:
        return box, point
    clicks = theirs.point_coords[theirs.point_labels == 1]
    return (
        box if theirs.box_xyxy is None else theirs.box_xyxy,
        clicks[0] if len(clicks) else point,
    )


def prompts_outside(rng: np.random.Generator, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A click [2] on a pixel that nobody annotated, and a box [4] around it; box first."""
    size = free.shape[0]
    rows, columns = np.nonzero(free)
    index = rng.integers(len(rows))
    point = np.array([columns[index], rows[index]], np.float32)
    sides = size * np.exp(rng.uniform(np.log(0.05), np.log(0.4), 2))
    corner = point - rng.uniform(0.2, 0.8, 2) * sides
    box = np.clip(np.concatenate([corner, corner + sides]), 0, size).astype(np.float32)
    return box, point
