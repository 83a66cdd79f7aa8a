"""A mask of a large image, kept only where it can be True.

An object covers a small part of a 4000x3000 image; steps that touch every pixel should touch only
those of its window. Everything outside the window is False. Between ``upscale.py`` and the output
forms (``rle.py``, ``polygon.py``) masks travel in this shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesam_core.arrays import Mask, SizeHW, check_shape


@dataclass(frozen=True, eq=False)
class WindowedMask:
    """A rectangle of pixels in an image that is False everywhere else.

    The window need not be tight, and may have no pixels at all.

    Attributes:
        window: [h, w] bool.
        x0: Image column of the window's first column.
        y0: Image row of the window's first row.
        original_size_hw: (H, W) of the image in pixels, after EXIF.
    """

    window: Mask
    x0: int
    y0: int
    original_size_hw: SizeHW

    def __post_init__(self) -> None:
        """Refuse a window that is not bool or does not lie in the image."""
        check_shape(self.window, (None, None), "window")
        if self.window.dtype != np.bool_:
            raise ValueError(f"window: expected bool, got {self.window.dtype}")
        height, width = self.original_size_hw
        h, w = self.window.shape
        if height < 1 or width < 1:
            raise ValueError(f"original_size_hw: expected at least 1x1, got {height}x{width}")
        if not (0 <= self.x0 <= width - w and 0 <= self.y0 <= height - h):
            raise ValueError(
                f"window {w}x{h} at ({self.x0}, {self.y0}) leaves the image {width}x{height}"
            )

    @classmethod
    def empty(cls, original_size_hw: SizeHW) -> WindowedMask:
        """A mask without a True pixel."""
        return cls(np.zeros((0, 0), np.bool_), 0, 0, original_size_hw)

    @classmethod
    def from_full(cls, mask: Mask) -> WindowedMask:
        """The mask [H, W] bool, cut to its tight window."""
        check_shape(mask, (None, None), "mask")
        height, width = mask.shape
        box = _tight_box(mask)
        if box is None:
            return cls.empty((height, width))
        x0, y0, x1, y1 = box
        return cls(mask[y0:y1, x0:x1], x0, y0, (height, width))

    def full(self) -> Mask:
        """The mask at the image's size, [H, W] bool."""
        mask = np.zeros(self.original_size_hw, np.bool_)
        h, w = self.window.shape
        mask[self.y0 : self.y0 + h, self.x0 : self.x0 + w] = self.window
        return mask

    @property
    def area(self) -> int:
        """Number of True pixels."""
        return int(np.count_nonzero(self.window))

    @property
    def box_xyxy(self) -> tuple[float, float, float, float] | None:
        """Tight box (x0, y0, x1, y1) along pixel edges of the original; None if empty.

        A single True pixel at column 3, row 5 has the box (3, 5, 4, 6).
        """
        box = _tight_box(self.window)
        if box is None:
            return None
        x0, y0, x1, y1 = box
        return float(self.x0 + x0), float(self.y0 + y0), float(self.x0 + x1), float(self.y0 + y1)


def _tight_box(mask: Mask) -> tuple[int, int, int, int] | None:
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
