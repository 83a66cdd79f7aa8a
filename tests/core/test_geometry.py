from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesam_core.errors import PromptError
from edgesam_core.geometry import (
    box_to_percent,
    check_points_inside,
    clip_box,
    original_to_input,
    percent_to_pixels,
    pixels_to_percent,
    rectangle_percent_to_box,
)

SIDES = st.integers(1, 20_000)
PERCENTS = st.floats(0, 100)


@given(st.lists(st.tuples(PERCENTS, PERCENTS), min_size=1), SIDES, SIDES)
def test_percent_to_pixels_and_back(
    points: list[tuple[float, float]], height: int, width: int
) -> None:
    percent = np.array(points)
    back = pixels_to_percent(percent_to_pixels(percent, (height, width)), (height, width))
    np.testing.assert_allclose(back, percent, atol=1e-5)


def test_percent_counts_x_of_the_width_and_y_of_the_height() -> None:
    pixels = percent_to_pixels(np.array([[25.0, 50.0]]), (480, 640))
    assert pixels.dtype == np.float32
    assert pixels.tolist() == [[160, 240]]


@pytest.mark.parametrize(
    "point",
    [
        pytest.param((-0.1, 50), id="left"),
        pytest.param((50, 100.1), id="below"),
        pytest.param((math.nan, 50), id="not a number"),
        pytest.param((50, math.inf), id="infinite"),
    ],
)
def test_a_click_outside_gets_a_sentence(point: tuple[float, float]) -> None:
    with pytest.raises(PromptError, match="outside the image"):
        percent_to_pixels(np.array([point]), (480, 640))
    with pytest.raises(PromptError, match="outside the image"):
        check_points_inside(np.array([point]) * (6.4, 4.8), (480, 640))


def test_a_click_on_the_border_may_be_a_hair_over_it() -> None:
    pixels = percent_to_pixels(np.array([[100.0000001, -1e-12]]), (480, 640))
    assert pixels.tolist() == [[640, 0]]
    check_points_inside(pixels, (480, 640))


def test_an_upright_rectangle_is_its_own_box() -> None:
    box = rectangle_percent_to_box(25, 50, 25, 10, 0, (480, 640))
    np.testing.assert_allclose(box, [160, 240, 320, 288])


def test_a_rotated_rectangle_turns_about_its_corner_in_pixels() -> None:
    # 100 x 50 pixels at (300, 200), turned by 90 degrees clockwise: it hangs left of its corner.
    box = rectangle_percent_to_box(300 / 6.4, 200 / 4.8, 100 / 6.4, 50 / 4.8, 90, (480, 640))
    np.testing.assert_allclose(box, [250, 200, 300, 300], atol=1e-3)


@given(st.floats(0, 360))
def test_the_box_holds_all_corners_of_a_rotated_rectangle(degrees: float) -> None:
    x, y, w, h = 300, 240, 120, 40
    box = rectangle_percent_to_box(x / 6.4, y / 4.8, w / 6.4, h / 4.8, degrees, (480, 640))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x + a * cos - d * sin, y + a * sin + d * cos) for a in (0, w) for d in (0, h)]
    xs, ys = zip(*corners, strict=True)
    np.testing.assert_allclose(box, [min(xs), min(ys), max(xs), max(ys)], atol=1e-2)


def test_a_rectangle_over_the_border_is_cut_there() -> None:
    box = rectangle_percent_to_box(-10, 90, 50, 20, 0, (100, 200))
    np.testing.assert_allclose(box, [0, 90, 80, 100])


@pytest.mark.parametrize(
    ("rectangle", "match"),
    [
        pytest.param((10, 10, 0, 5, 0), "no area", id="no width"),
        pytest.param((10, 10, 5, math.nan, 0), "no area", id="not a number"),
        pytest.param((10, 10, 5, 5, math.inf), "no area", id="infinite rotation"),
        pytest.param((120, 10, 5, 5, 0), "outside the image", id="outside"),
    ],
)
def test_a_useless_rectangle_gets_a_sentence(
    rectangle: tuple[float, float, float, float, float], match: str
) -> None:
    with pytest.raises(PromptError, match=match):
        rectangle_percent_to_box(*rectangle, (100, 200))


@given(st.tuples(PERCENTS, PERCENTS), st.tuples(PERCENTS, PERCENTS), SIDES, SIDES)
def test_box_to_percent_and_back(
    corner: tuple[float, float], size: tuple[float, float], height: int, width: int
) -> None:
    (x, y), (w, h) = corner, size
    if w < 0.01 or h < 0.01 or x + w > 100 or y + h > 100:
        return
    box = rectangle_percent_to_box(x, y, w, h, 0, (height, width))
    np.testing.assert_allclose(box_to_percent(box, (height, width)), (x, y, w, h), atol=1e-4)


def test_points_go_to_the_input_frame_by_the_ratio_of_each_axis() -> None:
    # 375 x 500 becomes 768 x 1024; 1001 x 333 becomes 1024 x 341, with two different ratios.
    points = original_to_input(np.array([[375.0, 500.0]]), (500, 375), (1024, 768))
    assert points.tolist() == [[768, 1024]]
    points = original_to_input(np.array([[1001.0, 333.0]]), (333, 1001), (341, 1024))
    assert points.tolist() == [[1024, 341]]


def test_a_box_inside_stays_as_it_is() -> None:
    box = np.array([1.5, 2, 3, 4.25], np.float32)
    np.testing.assert_array_equal(clip_box(box, (10, 10)), box)
