from __future__ import annotations

import numpy as np

from bench.soak_pictures import Drawn, is_right
from edgesam_core.rle import mask_to_brush_rle
from edgesam_core.windowed_mask import WindowedMask


def square(x: int, size_wh: tuple[int, int] = (64, 48)) -> list[int]:
    mask = np.zeros(size_wh[::-1], dtype=bool)
    mask[10:30, x : x + 20] = True
    return mask_to_brush_rle(WindowedMask.from_full(mask))


def test_the_soak_notices_the_mask_of_another_picture() -> None:
    drawn = Drawn("", (64, 48), ((0.5, 0.5),), ((square(10), square(11)),))
    assert is_right(drawn, 1, square(10))
    assert is_right(drawn, 1, square(12))  # the same object, not quite
    assert not is_right(drawn, 1, square(30))
    assert not is_right(drawn, 1, square(10, (80, 60)))
