from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesam_core.decode import Prompt
from edgesam_core.errors import ImageError
from edgesam_core.second_look import (
    MIN_SIDE_PX,
    MIN_ZOOM,
    Crop,
    crop_around,
    crop_for_next_click,
    cut,
    logits_in_crop,
    mask_in_image,
    prompt_in_crop,
)
from edgesam_core.windowed_mask import WindowedMask
from tests.core.conftest import embedding_of

SIZE_HW = (600, 800)


def rectangle(x0: int, y0: int, x1: int, y1: int) -> WindowedMask:
    """A filled rectangle in an image of 800 x 600."""
    return WindowedMask.from_window(np.ones((y1 - y0, x1 - x0), np.bool_), x0, y0, SIZE_HW)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """A box inside an image, and the image's size."""
    height, width = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    x0, x1 = sorted((draw(st.integers(0, width)), draw(st.integers(0, width))))
    y0, y1 = sorted((draw(st.integers(0, height)), draw(st.integers(0, height))))
    return (float(x0), float(y0), float(x1), float(y1)), (height, width)


@given(boxes())
def test_a_crop_lies_in_the_image_around_its_box_and_is_worth_it(
    given_box: tuple[tuple[float, float, float, float], tuple[int, int]],
) -> None:
    (x0, y0, x1, y1), size_hw = given_box
    # Crop itself refuses to leave the image.
    crop = crop_around((x0, y0, x1, y1), size_hw, padding=1.6)
    if crop is None:
        return
    assert crop.x0 <= x0
    assert crop.y0 <= y0
    assert crop.x1 >= x1
    assert crop.y1 >= y1
    assert MIN_ZOOM * max(crop.size_hw) <= max(size_hw)
    assert crop.size_hw == (
        min(max(crop.size_hw), size_hw[0]),
        min(max(crop.size_hw), size_hw[1]),
    )


def test_a_tiny_object_is_not_enlarged_without_end() -> None:
    crop = crop_around((300, 300, 304, 303), SIZE_HW, padding=3.0)
    assert crop is not None
    assert crop.size_hw == (MIN_SIDE_PX, MIN_SIDE_PX)


def test_a_long_thin_object_gets_no_crop() -> None:
    mask = rectangle(10, 300, 700, 305)  # 0.7 % of the image
    assert crop_for_next_click(mask, Prompt.from_clicks([(50, 302, 1)]), None) is None


def test_a_large_or_empty_mask_gets_no_crop() -> None:
    click = Prompt.from_clicks([(150, 150, 1)])
    assert crop_for_next_click(rectangle(100, 100, 200, 197), click, None) is None  # 2.02 %
    assert crop_for_next_click(rectangle(100, 100, 200, 195), click, None) is not None
    assert crop_for_next_click(WindowedMask.empty(SIZE_HW), click, None) is None


def test_a_crop_stays_while_it_holds_the_mask() -> None:
    click = Prompt.from_clicks([(420, 320, 1)])
    crop = crop_for_next_click(rectangle(400, 300, 440, 340), click, None)
    grown, outgrown = rectangle(398, 300, 450, 345), rectangle(300, 300, 440, 340)
    assert crop is not None
    assert crop_for_next_click(grown, click, crop) is crop
    new = crop_for_next_click(outgrown, click, crop)
    assert new is not None
    assert new.holds(outgrown)


def test_the_drawn_box_lies_in_the_crop_with_the_mask() -> None:
    box = Prompt.from_clicks(box_xyxy=(100, 100, 190, 180))
    crop = crop_for_next_click(rectangle(120, 120, 130, 130), box, None)
    assert crop is not None
    assert prompt_in_crop(box, crop) is not None


def test_a_crop_holds_a_mask_up_to_its_border_only_where_the_image_ends() -> None:
    at_corner, inside = Crop(0, 0, 100, 100, SIZE_HW), Crop(200, 200, 300, 300, SIZE_HW)
    assert at_corner.holds(rectangle(0, 0, 90, 90))
    assert not at_corner.holds(rectangle(0, 0, 100, 90))
    assert inside.holds(rectangle(210, 210, 290, 290))
    assert not inside.holds(rectangle(200, 210, 290, 290))
    assert not inside.holds(WindowedMask.empty(SIZE_HW))


@given(st.data())
def test_clicks_and_box_come_back_exactly(data: st.DataObject) -> None:
    crop = Crop(130, 70, 430, 370, SIZE_HW)
    # Quarters of a pixel are exact in float32, so nothing but a shift may happen to them.
    quarter = st.integers(0, 4 * 300).map(lambda n: n / 4)
    clicks = data.draw(st.lists(st.tuples(quarter, quarter, st.sampled_from((0, 1))), min_size=1))
    in_image = [(x + crop.x0, y + crop.y0, label) for x, y, label in clicks]
    moved = prompt_in_crop(Prompt.from_clicks(in_image, box_xyxy=(140, 80, 300, 360)), crop)
    assert moved is not None
    np.testing.assert_array_equal(moved.point_coords, np.array(clicks, np.float32)[:, :2])
    np.testing.assert_array_equal(moved.point_labels, np.array(clicks, np.float32)[:, 2])
    np.testing.assert_array_equal(moved.box_xyxy, np.array((10, 10, 170, 290), np.float32))


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(Prompt.from_clicks([(200, 200, 1), (500, 200, 0)]), id="click"),
        pytest.param(Prompt.from_clicks(box_xyxy=(100, 200, 300, 300)), id="box"),
    ],
)
def test_what_reaches_outside_the_crop_is_not_for_it(prompt: Prompt) -> None:
    assert prompt_in_crop(prompt, Crop(130, 70, 430, 370, SIZE_HW)) is None


def test_pixels_cut_and_a_mask_put_back_are_where_they_were() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*SIZE_HW, 3), np.uint8)
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[100:180, 200:260] = rng.random((80, 60)) < 0.5
    crop = Crop(190, 90, 300, 190, SIZE_HW)
    np.testing.assert_array_equal(cut(image, crop.xyxy), image[90:190, 190:300])
    of_crop = WindowedMask.from_full(mask[90:190, 190:300])
    np.testing.assert_array_equal(mask_in_image(of_crop, crop).full(), mask)


def test_an_image_that_became_smaller_is_told() -> None:
    with pytest.raises(ImageError, match="has changed"):
        cut(np.zeros((50, 50, 3), np.uint8), (10, 10, 60, 40))


def test_earlier_logits_lie_on_the_same_pixels_in_the_crop() -> None:
    # A plane: its value at a pixel of the original is x + 2 y in whichever frame it is asked for.
    # The image has 768 x 768 pixels, so a cell of S / 4 = 96 is 8 of them; the crop is a third.
    whole, part = (embedding_of((side, side), input_size=384) for side in (768, 256))
    crop = Crop(256, 128, 512, 384, (768, 768))
    centres = (np.arange(96) + 0.5) * 8
    plane = (centres[None, :] + 2 * centres[:, None]).astype(np.float32)
    moved = logits_in_crop(plane, whole, crop, part)
    x, y = np.meshgrid(
        (np.arange(96) + 0.5) * 256 / 96 + 256, (np.arange(96) + 0.5) * 256 / 96 + 128
    )
    np.testing.assert_allclose(moved, x + 2 * y, atol=1e-2)


@pytest.mark.parametrize("edges", [(-1, 0, 5, 5), (0, 0, 801, 5), (5, 5, 5, 9), (0, 0, 5, 601)])
def test_a_crop_outside_the_image_is_refused(edges: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="leaves the image"):
        Crop(*edges, SIZE_HW)
