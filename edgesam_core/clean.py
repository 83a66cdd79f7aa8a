"""Specks and pin-holes out of a mask.

Ragged brush regions freeze Label Studio's page, and nobody wants to erase two hundred specks by
hand. Islands and holes below a floor go; edges of what stays are not smoothed. It stands between
``upscale.py`` and the output forms.

Pixels of an island touch along edges (4-connected), pixels of a hole along edges or corners
(8-connected). The two belong together: then every hole is enclosed by exactly one island, every
island has one outer ring (which ``polygon.py`` follows), and a chain of specks that meet only at
corners counts as the specks it is. segment-anything takes 8-connected for both, where a diagonal
line is at once connected and no obstacle.

Components are found on runs, not pixels: runs that overlap in neighbouring rows are joined with a
union-find whose every step handles all runs at once.

Source:
    segment-anything, ``utils/amg.py``: ``remove_small_regions``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgesam_core.runs import Integers, RowRuns
from edgesam_core.windowed_mask import WindowedMask


def remove_specks(mask: WindowedMask, *, min_area_px: int) -> WindowedMask:
    """The mask without islands and holes of fewer than ``min_area_px`` pixels.

    The largest island always stays, so that a mask is never made empty. Islands go first: a hole
    is as large as it is without the specks in it. What reaches the image's edge is no hole.

    Args:
        mask: Any mask; returned as it is if there is nothing to do.
        min_area_px: Floor in pixels of the original; 0 and 1 remove nothing.
    """
    islands = mask.runs
    if min_area_px <= 1 or len(islands.rows) == 0:
        return mask
    label = connected_components(islands, diagonal=False)
    areas = np.bincount(label, weights=islands.lengths)
    stays = areas >= min_area_px
    stays[np.argmax(areas)] = True
    cleaned = mask
    if not stays[label].all():
        kept = islands.select(stays[label])
        cleaned = WindowedMask(kept, mask.x0, mask.y0, mask.original_size_hw).tight()

    outside = cleaned.runs.complement()
    label = connected_components(outside, diagonal=True)
    areas = np.bincount(label, weights=outside.lengths)
    stays = areas >= min_area_px
    stays[label[_touches_border(outside)]] = True
    if stays[label].all():
        return cleaned
    filled = outside.select(stays[label]).complement()
    return WindowedMask(filled, cleaned.x0, cleaned.y0, mask.original_size_hw)


def connected_components(runs: RowRuns, *, diagonal: bool) -> Integers:
    """Which component each run belongs to.

    Args:
        runs: Runs of a mask.
        diagonal: Whether pixels that share only a corner are connected (8 neighbours, not 4).

    Returns:
        [N] the index of the component's first run.
    """
    upper, lower = _touching_pairs(runs, diagonal=diagonal)
    # Every run points to an earlier one of its component or to itself (a root).
    label = np.arange(len(runs.rows))
    while len(upper):
        # Join the roots of both ends: the later one points to the earliest that it meets.
        root_a, root_b = label[upper], label[lower]
        np.minimum.at(label, np.maximum(root_a, root_b), np.minimum(root_a, root_b))
        # Point straight to the root.
        while not np.array_equal(shorter := label[label], label):
            label = shorter
        apart = label[upper] != label[lower]
        upper, lower = upper[apart], lower[apart]
    return label


def _touching_pairs(runs: RowRuns, *, diagonal: bool) -> tuple[Integers, Integers]:
    """All pairs of runs that touch: [P] index of the upper one, [P] of the lower one."""
    # One number for row and column, ascending from run to run. The runs in the row above that
    # touch a run follow each other: from the first that ends after its start to the last that
    # starts before its end (diagonal: not before, not after).
    stride = runs.size_hw[1] + 1
    row_begins = runs.rows * stride
    starts, stops = row_begins + runs.starts, row_begins + runs.stops
    first = np.searchsorted(stops, starts - stride, side="left" if diagonal else "right")
    last = np.searchsorted(starts, stops - stride, side="right" if diagonal else "left")
    touching = last - first
    lower = np.repeat(np.arange(len(starts)), touching)
    index_in_row = np.arange(len(lower)) - np.repeat(np.cumsum(touching) - touching, touching)
    return np.repeat(first, touching) + index_in_row, lower


def _touches_border(runs: RowRuns) -> npt.NDArray[np.bool_]:
    height, width = runs.size_hw
    in_edge_row = (runs.rows == 0) | (runs.rows == height - 1)
    touches: npt.NDArray[np.bool_] = in_edge_row | (runs.starts == 0) | (runs.stops == width)
    return touches
