from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest

from backend.prompt_regions import Keypoint, Rectangle
from backend.prompts import read_prompts
from edgesam_core.errors import EdgeSamError, ImageError, PromptError, RequestError
from tests.backend.conftest import keypoint, recorded, rectangle

SIZE_HW = (480, 640)


def objects_of(*regions: Any) -> tuple[Any, ...]:
    (prompts,) = read_prompts({"result": list(regions)})
    return prompts.objects


@pytest.mark.parametrize(
    "context",
    [
        pytest.param(None, id="no context"),
        pytest.param({}, id="no result"),
        pytest.param({"result": []}, id="empty result"),
        pytest.param({"result": None}, id="null result"),
    ],
)
def test_nothing_drawn_is_no_prompt(context: Any) -> None:
    assert read_prompts(context) == []


def test_keypoints_of_one_label_are_one_prompt_in_their_order() -> None:
    (prompt,) = objects_of(keypoint(50, 50, positive=False), keypoint(25, 30))
    assert prompt.box is None
    assert prompt.points == (Keypoint(50, 50, False), Keypoint(25, 30, True))
    in_pixels = prompt.in_pixels(SIZE_HW)
    assert in_pixels.point_coords.tolist() == [[320, 240], [160, 144]]
    assert in_pixels.point_labels.tolist() == [0, 1]


def test_each_rectangle_is_a_prompt_of_its_own() -> None:
    first, second = objects_of(rectangle(10, 10, 30, 30), rectangle(50, 50, 40, 40))
    assert first.in_pixels(SIZE_HW).box_xyxy.tolist() == [64, 48, 256, 192]
    assert second.in_pixels(SIZE_HW).box_xyxy.tolist() == [320, 240, 576, 432]
    assert first.points == second.points == ()


def test_another_label_is_another_object() -> None:
    cat, dog = objects_of(keypoint(10, 10), keypoint(20, 20, label="Dog"))
    assert (cat.labels, dog.labels) == (("Cat",), ("Dog",))


def test_a_rectangle_and_points_of_its_label_are_one_prompt() -> None:
    (prompt,) = objects_of(keypoint(80, 80, positive=False), rectangle(10, 10, 30, 30))
    assert prompt.box == Rectangle(10, 10, 30, 30, 0)
    assert prompt.points == (Keypoint(80, 80, False),)


def test_with_several_rectangles_a_point_goes_to_the_smallest_around_it() -> None:
    outer, inner, free = objects_of(
        rectangle(0, 0, 60, 60),
        rectangle(10, 10, 20, 20),
        keypoint(15, 15),
        keypoint(50, 50, positive=False),
        keypoint(90, 90),
    )
    assert outer.points == (Keypoint(50, 50, False),)
    assert inner.points == (Keypoint(15, 15, True),)
    assert free.box is None
    assert free.points == (Keypoint(90, 90, True),)


def test_a_rotated_rectangle_becomes_the_upright_box_around_it() -> None:
    # 100 x 50 px at (300, 200), turned by 90 degrees clockwise about that corner: it hangs to the
    # left of the corner, 50 wide and 100 high.
    region = rectangle(300 / 6.4, 200 / 4.8, 100 / 6.4, 50 / 4.8, rotation=90)
    (prompt,) = objects_of(region)
    assert prompt.in_pixels(SIZE_HW).box_xyxy == pytest.approx([250, 200, 300, 300], abs=1e-3)


def test_a_rectangle_over_the_border_is_cut_there() -> None:
    (prompt,) = objects_of(rectangle(90, 90, 20, 20))
    assert prompt.in_pixels(SIZE_HW).box_xyxy.tolist() == [576, 432, 640, 480]


def test_only_negative_clicks_ask_for_nothing() -> None:
    (prompts,) = read_prompts({"result": [keypoint(5, 5, positive=False)]})
    assert prompts.negatives_only
    assert prompts.objects == ()


def test_positive_in_the_value_is_heard_where_is_positive_is_missing() -> None:
    region = keypoint(5, 5)
    del region["is_positive"]
    region["value"]["positive"] = False
    (prompts,) = read_prompts({"result": [region]})
    assert prompts.negatives_only


@pytest.mark.parametrize("name", ["ui_separate_keypoint", "ui_separate_rectangle"])
def test_a_labels_pair_is_one_prompt_with_the_label(shared: Any, name: str) -> None:
    context = recorded(shared, name)["body"]["params"]["context"]
    (prompts,) = read_prompts(context)
    (prompt,) = prompts.objects
    assert prompt.labels == ("Cat",)
    assert len(prompt.points) == (1 if "keypoint" in name else 0)


def test_only_the_page_of_the_last_prompt_is_answered(shared: Any) -> None:
    context = recorded(shared, "ui_multi_image_page2")["body"]["params"]["context"]
    (prompts,) = read_prompts(context)
    assert prompts.item_index == 1
    assert prompts.original_size_hw == (200, 300)
    (prompt,) = prompts.objects
    assert prompt.points[0].x_percent == pytest.approx(60.04, abs=0.01)


def test_two_image_tags_are_answered_each() -> None:
    left, right = read_prompts({"result": [keypoint(1, 1), keypoint(2, 2, to_name="right")]})
    assert (left.to_name, right.to_name) == ("image", "right")


def test_an_accepted_mask_under_a_keypoint_label_is_no_click() -> None:
    mask = keypoint(1, 1)
    mask["value"] = {"format": "rle", "rle": [0, 1], "keypointlabels": ["Cat"]}
    assert read_prompts({"result": [mask]}) == []
    assert len(objects_of(mask, keypoint(20, 20))[0].points) == 1


def test_a_per_region_choice_beside_a_click_is_passed_over() -> None:
    click = keypoint(20, 20)
    choice = {**click, "type": "choices", "value": {"choices": ["occluded"]}}
    assert len(objects_of(click, choice)) == 1


@pytest.mark.parametrize("kind", ["brushlabels", "polygonlabels", "ellipselabels", "labels", None])
def test_a_region_that_is_no_prompt_is_told_by_its_type(kind: str | None) -> None:
    with pytest.raises(PromptError, match="cannot be a prompt"):
        read_prompts({"result": [keypoint(20, 20, type=kind)]})


@pytest.mark.parametrize(
    "region",
    [
        pytest.param(keypoint(101, 50), id="right of the image"),
        pytest.param(keypoint(50, -1), id="above the image"),
        pytest.param(keypoint(math.nan, 50), id="not a number"),
        pytest.param(keypoint(math.inf, 50), id="infinite"),
        pytest.param(keypoint("50", 50), id="a string"),  # type: ignore[arg-type]
        pytest.param(keypoint(True, 50), id="a bool"),
        pytest.param(rectangle(110, 10, 20, 20), id="box outside"),
        pytest.param(rectangle(10, 10, 0, 20), id="box without area"),
        pytest.param(rectangle(10, 10, 20, math.nan), id="box of nan"),
        pytest.param(rectangle(10, 10, 20, 20, rotation=math.inf), id="endless rotation"),
        pytest.param({**keypoint(5, 5), "value": None}, id="no value"),
        pytest.param({**keypoint(5, 5), "item_index": -1}, id="negative page"),
    ],
)
def test_a_prompt_that_cannot_be_placed_is_refused(region: Any) -> None:
    with pytest.raises(PromptError):
        read_prompts({"result": [region]})


@pytest.mark.parametrize("result", [{}, "x", [1], [None], [keypoint(1, 1)] * 1001])
def test_a_context_of_another_form_is_refused(result: Any) -> None:
    with pytest.raises(RequestError):
        read_prompts({"result": result})


def test_an_image_of_another_size_than_on_the_page_is_refused() -> None:
    (prompts,) = read_prompts({"result": [keypoint(5, 5)]})
    prompts.check_size((480, 640))
    with pytest.raises(ImageError, match="640 x 480"):
        prompts.check_size((640, 480))


def test_a_caller_that_gives_no_size_is_served() -> None:
    click = keypoint(50, 50)
    del click["original_width"]
    (prompts,) = read_prompts({"result": [click]})
    prompts.check_size((7, 9))
    assert prompts.objects[0].in_pixels((100, 200)).point_coords.tolist() == [[100, 50]]


def test_any_json_is_answered_or_refused_with_a_sentence() -> None:
    rng = np.random.default_rng(0)
    junk = [None, True, -1, 1e308, "x", [], {}, [[]], {"x": 1}, math.nan]
    for _ in range(500):
        region = keypoint(50, 50) if rng.random() < 0.5 else rectangle(10, 10, 20, 20)
        part = region if rng.random() < 0.5 else region["value"]
        part[rng.choice(list(part))] = junk[rng.integers(len(junk))]
        with contextlib.suppress(EdgeSamError):
            read_prompts({"result": [region, keypoint(20, 20)]})
