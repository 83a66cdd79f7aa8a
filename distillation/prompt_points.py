"""Clicks as a measuring person would make them: in the middle, then where the mask is wrong.

Deterministic, at the original size, in NumPy and OpenCV. The training draws its clicks elsewhere
(``prompt_sampling.py``, on the device). Two published protocols:

- "paper", EdgeSAM's: the first click at the arg-max of kornia's distance transform, further ones
  anywhere among the wrong pixels of a 256 x 256 frame, all equally likely.
- "sam", Segment Anything's, which is that of RITM: every click as far from the border as possible,
  first of the object, then of the error. The click does not depend on luck, and helps more.

A click is at the centre of its pixel: pixel (column 3, row 5) is clicked at (3.5, 5.5) in a frame
whose origin is the corner of the image. The official evaluation sends (3, 5), half a pixel beside
it, or up to one and a half pixels beside it for further clicks (the corner of a cell of the 256
frame); and it compares with a ground truth that has grown at its borders on the way to 256 and
back. Neither is repeated here (REFERENCE.md, section 11).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from edgesam_core.arrays import Mask, PointCoords

Click = tuple[float, float, int]
"""(x, y, label): pixels of the original image; label 1 positive, 0 negative."""

GRID = 256
"""Places along the long side at which prediction and truth are compared for the next click."""

MIN_WRONG_PLACES = 10
"""With fewer wrong places of the grid the mask is left as it is.

Source: EdgeSAM's evaluation: fewer than 10 wrong pixels of 256 x 256 get the label -2, "ignore".
Training counts the cells of its own, mostly coarser grid (``prompt_sampling.MIN_WRONG_CELLS``).
"""

_SIDE, _CORNER = np.exp(-1 / 0.35), np.exp(-np.sqrt(2) / 0.35)
_KERNEL = np.array(
    [[_CORNER, _SIDE, _CORNER], [_SIDE, 0, _SIDE], [_CORNER, _SIDE, _CORNER]], np.float32
)


def deepest_pixel(mask: Mask) -> tuple[int, int, int]:
    """The pixel of a mask that is farthest from everything that is not mask.

    The distance is counted in steps to any of the eight neighbours; what lies outside the image
    counts as not mask. Of several deepest pixels the one with the fewest and least close shallower
    neighbours is taken, then the first in reading order.

    Args:
        mask: [H, W] bool with at least one pixel.

    Returns:
        (column, row, depth): depth 1 for a pixel on the mask's edge.

    Source:
        EdgeSAM's evaluation takes the arg-max of kornia's ``distance_transform`` of the padded
        mask. That approximation (h = 0.35, 3 x 3 kernel) grows one ring of eight neighbours per
        step and sorts within a ring by the kernel's response to the rings before; this is the same
        order from an exact chessboard distance. On thick shapes it is the Euclidean centre.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    framed = np.pad(mask[y : y + height, x : x + width], 1).astype(np.uint8)
    distance = cv2.distanceTransform(framed, cv2.DIST_C, 3)
    depth = distance.max()
    shallower = (distance < depth).astype(np.float32)
    response = cv2.filter2D(shallower, -1, _KERNEL, borderType=cv2.BORDER_CONSTANT)
    response[distance < depth] = np.inf
    # Mirrored neighbourhoods are equal but for the order in which they were added up.
    row, column = np.unravel_index(np.argmin(np.round(response, 5)), response.shape)
    return x + int(column) - 1, y + int(row) - 1, int(depth)


def centre_click(mask: Mask) -> Click:
    """One positive click in the middle of a mask ([H, W] bool, not empty)."""
    column, row, _ = deepest_pixel(mask)
    return column + 0.5, row + 0.5, 1


def farthest_pixel(mask: Mask) -> tuple[int, int, float]:
    """The pixel of a mask with the largest Euclidean distance to everything that is not mask.

    What lies outside the image counts as not mask. Of several the first in reading order.

    Args:
        mask: [H, W] bool with at least one pixel.

    Returns:
        (column, row, distance in pixels).
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    framed = np.pad(mask[y : y + height, x : x + width], 1).astype(np.uint8)
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    row, column = np.unravel_index(np.argmax(distance), distance.shape)
    return x + int(column) - 1, y + int(row) - 1, float(distance[row, column])


def farthest_click(mask: Mask) -> Click:
    """One positive click as far from the border of a mask ([H, W] bool, not empty) as possible."""
    column, row, _ = farthest_pixel(mask)
    return column + 0.5, row + 0.5, 1


def random_click(mask: Mask, seed: int) -> Click:
    """One positive click on any pixel of a mask ([H, W] bool, not empty), all equally likely.

    Source:
        Segment Anything (arXiv 2304.02643), appendix D.1: the more challenging first point.
    """
    pixels = np.flatnonzero(mask)
    row, column = divmod(int(np.random.default_rng(seed).choice(pixels)), mask.shape[1])
    return column + 0.5, row + 0.5, 1


def seed_of(*names: object) -> int:
    """A seed that depends on what is clicked only, so that every run meets the same luck."""
    return zlib.crc32("/".join(map(str, names)).encode())


def wrong_pixel_click(
    prediction: Mask, truth: Mask, seed: int, clicked: PointCoords | None = None
) -> Click | None:
    """A click anywhere in the wrong part, all of its places being equally likely.

    Prediction and truth are compared at the centres of a grid with 256 cells along the long side,
    so that the click lies on a wrong pixel of the original too.

    Args:
        prediction: [H, W] bool.
        truth: [H, W] bool.
        seed: Which of the places.
        clicked: Not used: a place may be drawn again.

    Returns:
        Positive where something is missed, negative where something was spilled; None where there
        is next to nothing to correct.

    Source:
        EdgeSAM's evaluation: uniform over the wrong pixels at 256 x 256 of the padded square, the
        click in the corner of the cell. Ours is at its centre, and there is no padding.
    """
    height, width = truth.shape
    cell_px = max(height, width) / GRID
    rows = ((np.arange(round(height / cell_px)) + 0.5) * cell_px).astype(int).clip(0, height - 1)
    columns = ((np.arange(round(width / cell_px)) + 0.5) * cell_px).astype(int).clip(0, width - 1)
    cells = np.ix_(rows, columns)
    wrong = np.argwhere(prediction[cells] != truth[cells])
    if len(wrong) < MIN_WRONG_PLACES:
        return None
    i, j = wrong[np.random.default_rng(seed).integers(len(wrong))]
    row, column = int(rows[i]), int(columns[j])
    return column + 0.5, row + 0.5, int(truth[row, column])


def middle_of_error_click(
    prediction: Mask, truth: Mask, seed: int = 0, clicked: PointCoords | None = None
) -> Click | None:
    """A click in the middle of the thickest error, as a person would make it.

    Args:
        prediction: [H, W] bool.
        truth: [H, W] bool.
        seed: Not used: nothing is drawn.
        clicked: [N, 2] (x, y) of earlier clicks; their pixels are taken for right, so that no
            place is clicked on twice.

    Returns:
        As ``wrong_pixel_click``; None only where nothing is wrong.

    Source:
        Segment Anything (arXiv 2304.02643), appendix D.1, after RITM (arXiv 2102.06583), whose
        code also takes what is missed and what is spilled for two errors, and the thicker one.
    """
    wrong = prediction != truth
    if clicked is not None and len(clicked):
        wrong[clicked[:, 1].astype(int), clicked[:, 0].astype(int)] = False
    errors = [(wrong & truth, 1), (wrong & prediction, 0)]
    found = [(*farthest_pixel(error), label) for error, label in errors if error.any()]
    if not found:
        return None
    column, row, _, label = max(found, key=lambda pixel: pixel[2])
    return column + 0.5, row + 0.5, label


CorrectiveClick = Callable[[Mask, Mask, int, PointCoords | None], Click | None]


@dataclass(frozen=True)
class ClickProtocol:
    """How the clicks of one published evaluation are found."""

    first: Callable[[Mask], Click]
    correct: CorrectiveClick


PROTOCOLS = {
    "paper": ClickProtocol(centre_click, wrong_pixel_click),
    "sam": ClickProtocol(farthest_click, middle_of_error_click),
}
"""By the name on the command line."""
