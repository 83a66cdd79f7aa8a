"""A mask of a large image, kept as runs and only where it can be True.

An object covers a small part of a 4000x3000 image, and its outline a small part of that. Between
``upscale.py`` and the output forms (``rle.py``, ``polygon.py``) masks travel in this shape; no
step but those that need pixels (polygons, PNG) ever touches one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgesam_core.arrays import Mask, SizeHW, check_shape
from edgesam_core.runs import RowRuns, row_runs


@dataclass(frozen=True, eq=False)
class WindowedMask:
    """A rectangle of pixels in an image that is False everywhere else.

    The window need not be tight, and may have no pixels at all.

    Attributes:
        runs: The True pixels, in the window's rows and columns; ``runs.size_hw`` is its size.
        x0: Image column of the window's first column.
        y0: Image row of the window's first row.
        original_size_hw: (H, W) of the image in pixels, after EXIF.
    """

    runs: RowRuns
    x0: int
    y0: int
    original_size_hw: SizeHW

    def __post_init__(self) -> None:
        """Refuse a window that does not lie in the image."""
        height, width = self.original_size_hw
        h, w = self.runs.size_hw
        if height < 1 or width < 1:
            raise ValueError(f"original_size_hw: expected at least 1x1, got {height}x{width}")
        if not (0 <= self.x0 <= width - w and 0 <= self.y0 <= height - h):
            raise ValueError(
                f"window {w}x{h} at ({self.x0}, {self.y0}) leaves the image {width}x{height}"
            )

    @classmethod
    def from_window(cls, window: Mask, x0: int, y0: int, original_size_hw: SizeHW) -> WindowedMask:
        """The mask that has these pixels [h, w] bool at (x0, y0).

        Raises:
            ValueError: The window is not bool or does not lie in the image.
        """
        check_shape(window, (None, None), "window")
        if window.dtype != np.bool_:
            raise ValueError(f"window: expected bool, got {window.dtype}")
        return cls(row_runs(window), x0, y0, original_size_hw)

    @classmethod
    def from_full(cls, mask: Mask) -> WindowedMask:
        """The mask [H, W] bool, cut to its tight window.

        Raises:
            ValueError: It is not bool, or has no pixel.
        """
        return cls.from_window(mask, 0, 0, mask.shape).tight()

    @classmethod
    def empty(cls, original_size_hw: SizeHW) -> WindowedMask:
        """A mask without a True pixel."""
        nothing = np.zeros(0, np.int64)
        return cls(RowRuns(nothing, nothing, nothing, (0, 0)), 0, 0, original_size_hw)

    def tight(self) -> WindowedMask:
        """The same mask in the smallest window."""
        box = self._box_in_window()
        if box is None:
            return WindowedMask.empty(self.original_size_hw)
        x0, y0, x1, y1 = box
        rows, starts, stops = self.runs.rows - y0, self.runs.starts - x0, self.runs.stops - x0
        runs = RowRuns(rows, starts, stops, (y1 - y0, x1 - x0))
        return WindowedMask(runs, self.x0 + x0, self.y0 + y0, self.original_size_hw)

    @cached_property
    def window(self) -> Mask:
        """[h, w] bool, the pixels; painted when they are asked for."""
        return self.runs.paint()

    def full(self) -> Mask:
        """The mask at the image's size, [H, W] bool."""
        return self.full_runs().paint()

    def full_runs(self) -> RowRuns:
        """The mask's runs in the image's rows and columns."""
        runs = self.runs
        return RowRuns(
            runs.rows + self.y0, runs.starts + self.x0, runs.stops + self.x0, self.original_size_hw
        )

    @property
    def area(self) -> int:
        """Number of True pixels."""
        return int(self.runs.lengths.sum())

    @property
    def box_xyxy(self) -> tuple[float, float, float, float] | None:
        """Tight box (x0, y0, x1, y1) along pixel edges of the original; None if empty.

        A single True pixel at column 3, row 5 has the box (3, 5, 4, 6).
        """
        box = self._box_in_window()
        if box is None:
            return None
        x0, y0, x1, y1 = box
        return float(self.x0 + x0), float(self.y0 + y0), float(self.x0 + x1), float(self.y0 + y1)

    def _box_in_window(self) -> tuple[int, int, int, int] | None:
        runs = self.runs
        if len(runs.rows) == 0:
            return None
        columns = int(runs.starts.min()), int(runs.stops.max())
        return columns[0], int(runs.rows[0]), columns[1], int(runs.rows[-1]) + 1
