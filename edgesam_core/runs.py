"""Masks as runs of True pixels, row by row, and back.

What up-scaling, cleaning, polygons and RLE have in common: a mask of twelve million pixels has a
few thousand places where it changes, and everything about it can be worked out from those. This
file finds the places and paints pixels from them; it knows nothing of images or file formats.

Between runs and runs nothing touches a pixel. NumPy paints with ``np.repeat``, which is a
``memset`` per run, so that to and from pixels costs one pass over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from edgesam_core.arrays import Mask, SizeHW

Integers = npt.NDArray[np.int64]
Toggles = Annotated[npt.NDArray[np.int64], "[2 N] sorted positions in the flattened mask"]


@dataclass(frozen=True, eq=False)
class RowRuns:
    """Every maximal run of True pixels that lies within one row.

    Sorted by row, then from left to right. A run that continues in the next row is two runs.

    Attributes:
        rows: [N] row of each run.
        starts: [N] column of its first pixel.
        stops: [N] column after its last pixel.
        size_hw: (height, width) of the mask in pixels.
    """

    rows: Integers
    starts: Integers
    stops: Integers
    size_hw: SizeHW

    @property
    def lengths(self) -> Integers:
        """[N] pixels in each run, at least 1."""
        return self.stops - self.starts

    def select(self, keep: npt.NDArray[np.bool_]) -> RowRuns:
        """The runs where ``keep`` [N] is True."""
        return RowRuns(self.rows[keep], self.starts[keep], self.stops[keep], self.size_hw)

    def complement(self) -> RowRuns:
        """The runs of the pixels that are in none of these."""
        height, width = self.size_hw
        all_rows = np.arange(height)
        before = np.append(all_rows * (width + 1), self._begins() + self.stops)
        after = np.append(all_rows * (width + 1) + width, self._begins() + self.starts)
        return _runs_of_toggles(np.stack([np.sort(before), np.sort(after)], 1), self.size_hw)

    def close_gaps(self, width_px: int) -> RowRuns:
        """These runs, those joined that lie in one row with at most ``width_px`` between them."""
        same_row = self.rows[1:] == self.rows[:-1]
        joined = np.flatnonzero(same_row & (self.starts[1:] - self.stops[:-1] <= width_px))
        rows, starts = np.delete(self.rows, joined + 1), np.delete(self.starts, joined + 1)
        return RowRuns(rows, starts, np.delete(self.stops, joined), self.size_hw)

    def _begins(self) -> Integers:
        """[N] where each run's row begins, if every row were one pixel longer than it is."""
        return self.rows * (self.size_hw[1] + 1)

    def paint(self) -> Mask:
        """The mask [H, W] that has exactly these runs."""
        row_begins = self.rows * self.size_hw[1]
        toggles = np.stack([row_begins + self.starts, row_begins + self.stops], axis=1)
        return paint_toggles(toggles.ravel(), self.size_hw)


def row_runs(mask: Mask) -> RowRuns:
    """The runs of a mask.

    Args:
        mask: [H, W] bool; H or W may be 0.
    """
    height, width = mask.shape
    # One False column on the right ends every row's last run, so that toggles come in pairs; the
    # one False pixel in front lets the first pixel be a toggle too.
    framed = np.zeros(1 + height * (width + 1), np.bool_)
    framed[1:].reshape(height, width + 1)[:, :width] = mask
    toggles = np.flatnonzero(framed[1:] != framed[:-1])
    return _runs_of_toggles(toggles.reshape(-1, 2), (height, width))


def runs_between(rows: Integers, columns: Integers, size_hw: SizeHW) -> RowRuns:
    """The runs of a mask that is False at the begin of each row and changes at these pixels.

    Args:
        rows: [N] of each change, in any order.
        columns: [N] 0..width, the first pixel that is different; an even number in every row. Two
            changes at one pixel are none.
        size_hw: (height, width) in pixels.
    """
    toggles = np.sort(rows * (size_hw[1] + 1) + columns)
    lasts = np.flatnonzero(np.diff(toggles, append=-1))  # of those that are equal
    is_odd = np.diff(lasts, prepend=-1) % 2 == 1
    return _runs_of_toggles(toggles[lasts[is_odd]].reshape(-1, 2), size_hw)


def _runs_of_toggles(pairs: Integers, size_hw: SizeHW) -> RowRuns:
    """The runs with these ends [N, 2], as positions in rows of ``width + 1`` pixels.

    The added pixel keeps the end of a row apart from the start of the next. Empty runs are left
    out.
    """
    starts, stops = pairs[pairs[:, 0] < pairs[:, 1]].T
    rows = starts // (size_hw[1] + 1)
    begins = rows * (size_hw[1] + 1)
    return RowRuns(rows, starts - begins, stops - begins, size_hw)


def paint_toggles(toggles: Toggles, size_hw: SizeHW) -> Mask:
    """A mask that is False at its first pixel and changes at each of the given positions.

    Args:
        toggles: [2 N] int64, ascending, 0..H*W in the row-major mask; a position that occurs twice
            changes nothing, so the end of one row and the start of the next may coincide.
        size_hw: (height, width) in pixels.

    Returns:
        [H, W] bool.
    """
    height, width = size_hw
    lengths = np.diff(toggles, prepend=0, append=height * width)
    is_true = np.arange(len(lengths)) % 2 == 1
    return np.repeat(is_true, lengths).reshape(height, width)
