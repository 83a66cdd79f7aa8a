"""Masks as runs of True pixels, row by row, and back.

What up-scaling, cleaning, polygons and RLE have in common: a mask of twelve million pixels has a
few thousand places where it changes, and everything about it can be worked out from those. This
file finds the places and paints pixels from them; it knows nothing of images or file formats.

NumPy paints with ``np.repeat``, which is a ``memset`` per run, so that both directions cost one
pass over the pixels.
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
    rows = toggles[0::2] // (width + 1)
    row_begins = rows * (width + 1)
    return RowRuns(rows, toggles[0::2] - row_begins, toggles[1::2] - row_begins, (height, width))


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
