from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given

from edgesam_core.windowed_mask import WindowedMask

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@given(MASKS)
def test_cutting_a_mask_to_its_window_loses_nothing(mask):
    windowed = WindowedMask.from_full(mask)
    assert np.array_equal(windowed.full(), mask)
    assert windowed.area == mask.sum()


@given(MASKS)
def test_the_window_of_a_full_mask_is_its_tight_box(mask):
    windowed = WindowedMask.from_full(mask)
    height, width = windowed.window.shape
    if windowed.box_xyxy is None:
        assert not mask.any()
        assert windowed.window.size == 0
    else:
        x0, y0 = windowed.x0, windowed.y0
        assert windowed.box_xyxy == (x0, y0, x0 + width, y0 + height)


def test_the_box_is_tight_where_the_window_is_not():
    window = np.zeros((6, 7), np.bool_)
    window[2:4, 3] = True
    assert WindowedMask.from_window(window, 10, 20, (100, 100)).box_xyxy == (13.0, 22.0, 14.0, 24.0)


@given(MASKS)
def test_no_pixel_is_painted_before_somebody_asks_for_one(mask):
    windowed = WindowedMask.from_window(mask, 3, 4, (40, 40))
    assert windowed.tight().area == windowed.area == mask.sum()
    assert windowed.tight().box_xyxy == windowed.box_xyxy
    assert "window" not in vars(windowed)
    assert np.array_equal(windowed.window, mask)
    assert np.array_equal(windowed.tight().full(), windowed.full())


def test_an_empty_mask_has_no_box_and_no_area():
    empty = WindowedMask.empty((3, 4))
    assert empty.box_xyxy is None
    assert empty.area == 0
    assert empty.full().shape == (3, 4)
    assert not empty.full().any()


@pytest.mark.parametrize(
    ("window", "x0", "y0", "size_hw"),
    [
        pytest.param(np.ones((2, 2), np.bool_), 3, 0, (4, 4), id="over the right edge"),
        pytest.param(np.ones((2, 2), np.bool_), 0, 3, (4, 4), id="over the bottom"),
        pytest.param(np.ones((2, 2), np.bool_), -1, 0, (4, 4), id="over the left edge"),
        pytest.param(np.ones((2, 2), np.uint8), 0, 0, (4, 4), id="not bool"),
        pytest.param(np.ones(4, np.bool_), 0, 0, (4, 4), id="not two-dimensional"),
        pytest.param(np.ones((0, 0), np.bool_), 0, 0, (0, 4), id="no image"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(window, x0, y0, size_hw):
    with pytest.raises(ValueError, match=r"window|original_size_hw"):
        WindowedMask.from_window(window, x0, y0, size_hw)
