"""Regions of every kind as masks, from recorded replies and from numbers whose masks are known."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from backend.regions import UNLABELLED, Region, region_mask, regions_of
from edgesam_core.errors import PromptError
from edgesam_core.rle import mask_to_brush_rle
from edgesam_core.windowed_mask import WindowedMask

SIZE = (60, 80)  # height, width
PERCENT = (100 / 80, 100 / 60)
"""Percent of one pixel: along x, along y."""

BoolArray = npt.NDArray[np.bool_]


def result(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A result as the editor writes it, labelled Cat where its kind has labels."""
    labels = {kind: ["Cat"]} if kind.endswith("labels") else {}
    return {
        "id": "r1",
        "type": kind,
        "from_name": "tag",
        "to_name": "image",
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
        "value": {**value, **labels},
        **more,
    }


def box_mask(x0: int, y0: int, x1: int, y1: int) -> BoolArray:
    mask = np.zeros(SIZE, np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def holed() -> BoolArray:
    """Two parts, one of them with a hole."""
    return box_mask(5, 5, 30, 30) & ~box_mask(10, 12, 20, 18) | box_mask(50, 40, 60, 55)


def brush_rle(mask: BoolArray) -> list[int]:
    return mask_to_brush_rle(WindowedMask.from_full(mask))


def png_uri(rgba: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def bitmask_uri(mask: BoolArray) -> str:
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[mask, 3] = 255
    return png_uri(rgba)


def only(results: list[Any]) -> Region:
    (region,) = regions_of(results)
    return region


def mask_of(*results: dict[str, Any]) -> BoolArray:
    return region_mask(only(list(results)), SIZE)


def percent_points(*points: tuple[float, float]) -> list[list[float]]:
    return [[x * PERCENT[0], y * PERCENT[1]] for x, y in points]


def vertices(*points: tuple[float, float], **more: Any) -> list[dict[str, Any]]:
    """A vector's vertices as the editor writes them, each naming the one before it."""
    return [
        {"id": f"v{i}", "x": x, "y": y, "isBezier": False}
        | ({"prevPointId": f"v{i - 1}"} if i else {})
        | more
        for i, (x, y) in enumerate(percent_points(*points))
    ]


# --- stored pixels ---


def test_a_brush_region_keeps_its_holes_and_parts() -> None:
    found = mask_of(result("brushlabels", {"format": "rle", "rle": brush_rle(holed())}))
    np.testing.assert_array_equal(found, holed())


def test_the_soft_edge_of_an_edited_brush_region_is_cut_at_half() -> None:
    from label_studio_sdk.converter.brush import encode_rle

    alpha = np.zeros(SIZE, np.uint8)
    alpha[10, 10:15] = [1, 127, 128, 254, 255]
    rle = encode_rle(np.repeat(alpha.ravel(), 4))
    found = mask_of(result("brushlabels", {"format": "rle", "rle": rle}))
    np.testing.assert_array_equal(found, box_mask(12, 10, 15, 11))


def test_a_bitmask_keeps_its_holes_and_parts_and_its_soft_edge_is_cut_at_half() -> None:
    rgba = np.zeros((*SIZE, 4), np.uint8)
    rgba[holed(), 3] = 255
    rgba[0, :4, 3] = [1, 127, 128, 254]
    found = mask_of(result("bitmasklabels", {"imageDataURL": png_uri(rgba)}))
    np.testing.assert_array_equal(found, holed() | box_mask(2, 0, 4, 1))


@pytest.mark.parametrize("kind", ["bitmasklabels", "keypointlabels", "rectanglelabels"])
def test_a_mask_under_the_name_of_another_control_is_still_a_mask(kind: str) -> None:
    """Label Studio writes that where a label row was still selected at the accepting."""
    region = only([result(kind, {"format": "rle", "rle": brush_rle(holed())})])
    assert (region.shape, region.label) == ("brush", "Cat")
    np.testing.assert_array_equal(region_mask(region, SIZE), holed())


# --- drawn shapes ---


def test_a_polygon_takes_the_pixels_whose_centres_it_holds() -> None:
    points = percent_points((10, 20), (30, 20), (30, 45), (10, 45))
    found = mask_of(result("polygonlabels", {"points": points, "closed": True}))
    np.testing.assert_array_equal(found, box_mask(10, 20, 30, 45))


def test_a_polygon_that_leaves_the_image_is_cut_at_its_border() -> None:
    points = percent_points((-10, 50), (20, 50), (20, 90), (-10, 90))
    found = mask_of(result("polygon", {"points": points}))
    np.testing.assert_array_equal(found, box_mask(0, 50, 20, 60))


def rectangle(x: float, y: float, w: float, h: float, rotation: float) -> dict[str, Any]:
    (x, y), (w, h) = percent_points((x, y), (w, h))
    return {"x": x, "y": y, "width": w, "height": h, "rotation": rotation}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(rectangle(10, 20, 30, 15, 0), box_mask(10, 20, 40, 35), id="upright"),
        pytest.param(rectangle(40, 20, 10, 30, 90), box_mask(10, 20, 40, 30), id="a quarter turn"),
        pytest.param(rectangle(40, 35, -30, -15, 0), box_mask(10, 20, 40, 35), id="from below"),
    ],
)
def test_a_rectangle_turns_clockwise_about_its_corner(
    value: dict[str, Any], expected: BoolArray
) -> None:
    np.testing.assert_array_equal(mask_of(result("rectanglelabels", value)), expected)


def test_a_rectangle_turned_by_any_angle_keeps_its_area_and_its_right_angles() -> None:
    found = mask_of(result("rectangle", rectangle(40, 10, 30, 20, 30)))
    assert found.sum() == pytest.approx(30 * 20, rel=0.02)
    rows, columns = np.nonzero(found)
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    x, y = columns + 0.5 - 40, rows + 0.5 - 10
    along, down = x * c + y * s, -x * s + y * c
    assert 0 <= along.min() <= along.max() <= 30
    assert 0 <= down.min() <= down.max() <= 20


@pytest.mark.parametrize("rotation", [0, 25, 90, 340])
def test_an_ellipse_takes_the_pixels_whose_centres_it_holds(rotation: float) -> None:
    (centre,), (radii,) = percent_points((42, 29)), percent_points((20, 9))
    value = {"x": centre[0], "y": centre[1], "radiusX": radii[0], "radiusY": radii[1]}
    found = mask_of(result("ellipselabels", {**value, "rotation": rotation}))

    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    turn = math.radians(rotation)
    along = (x - 42) * math.cos(turn) + (y - 29) * math.sin(turn)
    across = -(x - 42) * math.sin(turn) + (y - 29) * math.cos(turn)
    distance = (along / 20) ** 2 + (across / 9) ** 2
    assert found[distance < 0.999].all()
    assert not found[distance > 1.001].any()


def test_a_closed_vector_is_filled_whichever_order_its_vertices_are_stored_in() -> None:
    straight = vertices((10, 20), (30, 20), (30, 45), (10, 45))
    straight[0]["prevPointId"] = "v3"
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [3, 1, 0, 2]):
        stored = [straight[i] for i in order]
        found = mask_of(result("vectorlabels", {"vertices": stored, "closed": True}))
        np.testing.assert_array_equal(found, box_mask(10, 20, 30, 45))


def test_a_vector_without_ids_follows_the_list() -> None:
    points = percent_points((10, 20), (30, 20), (30, 45), (10, 45))
    stored = [{"x": x, "y": y} for x, y in points]
    found = mask_of(result("vector", {"vertices": stored, "closed": True}))
    np.testing.assert_array_equal(found, box_mask(10, 20, 30, 45))


def test_the_curves_of_a_vector_are_followed() -> None:
    """Four cubic curves that make a circle to within a quarter of a thousandth of its radius."""
    r, k = 20.0, 0.5522847498
    corners = [(r, 0), (0, r), (-r, 0), (0, -r)]
    along = [(0, r * k), (-r * k, 0), (0, -r * k), (r * k, 0)]
    stored = []
    for i, ((x, y), (dx, dy)) in enumerate(zip(corners, along, strict=True)):
        here, before, after = percent_points(
            (40 + x, 30 + y), (40 + x - dx, 30 + y - dy), (40 + x + dx, 30 + y + dy)
        )
        vertex = {"id": str(i), "prevPointId": str((i - 1) % 4), "isBezier": True}
        handles = {
            "controlPoint1": dict(zip("xy", before, strict=True)),
            "controlPoint2": dict(zip("xy", after, strict=True)),
        }
        stored.append(vertex | handles | dict(zip("xy", here, strict=True)))
    found = mask_of(result("vectorlabels", {"vertices": stored, "closed": True}))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    distance = np.hypot(x - 40, y - 30)
    assert found[distance < 19.9].all()
    assert not found[distance > 20.1].any()


# --- recorded at Label Studio itself ---


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("brush", "brush"),
        ("bitmask", "bitmask"),
        ("polygon", "polygon"),
        ("brush_and_labels", "brush"),
    ],
)
def test_a_reply_that_the_page_accepted_is_one_labelled_mask(
    shared: Path, name: str, shape: str
) -> None:
    text = (shared / "label_studio" / "accepted" / f"{name}.json").read_text(encoding="utf-8")
    region = only(json.loads(text)["reply"]["results"][0]["result"])
    assert (region.shape, region.label) == (shape, "Cat")
    mask = region_mask(region, (480, 640))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    filled = (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
    assert mask.sum() == filled, "a rectangle of pixels was recorded"
    assert 70 < len(rows) < 110
    assert 70 < len(columns) < 110


def test_the_annotation_of_a_recorded_webhook_is_a_labelled_rectangle(shared: Path) -> None:
    path = shared / "label_studio" / "recorded" / "webhook_annotation_created.json"
    annotation = json.loads(path.read_bytes())["request"]["body"]["annotation"]
    region = only(annotation["result"])
    assert (region.region_id, region.label, region.from_name) == ("x", "Cat", "tag3")
    assert region_mask(region, (480, 640)).sum() == 32 * 24


# --- several results, one region ---


def test_a_bare_brush_takes_the_label_of_its_second_result() -> None:
    value = {"format": "rle", "rle": brush_rle(holed())}
    labels = result("labels", value, from_name="label")
    region = only([labels, result("brush", value, from_name="brush")])
    assert (region.shape, region.label, region.from_name) == ("brush", "Cat", "brush")


def test_a_mask_and_its_copy_under_a_prompt_control_are_one_region() -> None:
    value = {"format": "rle", "rle": brush_rle(holed())}
    mask, copy = result("brushlabels", value), result("keypointlabels", value)
    copy["value"]["keypointlabels"] = ["Dog"]
    region = only([mask, copy])
    assert (region.result["type"], region.label) == ("brushlabels", "Cat")


def test_pages_of_a_task_keep_their_regions_apart() -> None:
    value = {"format": "rle", "rle": brush_rle(holed())}
    regions = regions_of([result("brush", value, item_index=i) for i in (0, 1)])
    assert [region.item_index for region in regions] == [0, 1]


def test_what_is_no_region_is_passed_over() -> None:
    assert regions_of(None) == regions_of("no list") == []
    others = [
        result("choices", {"choices": ["Indoor"]}),
        result("textarea", {"text": ["a cat"]}),
        {"type": "relation", "from_id": "a", "to_id": "b"},
        "no result",
        result("labels", {"start": 0, "end": 3, "text": "cat"}),
    ]
    assert regions_of(others) == []


def test_a_region_without_a_label_is_an_object() -> None:
    value = {"format": "rle", "rle": brush_rle(holed())}
    assert only([result("brush", value)]).label == UNLABELLED


def test_origin_and_story_come_with_the_region() -> None:
    story = {"version": "abc", "prompt": {"points": [[1, 2]], "labels": [1], "box": None}}
    value = {"format": "rle", "rle": brush_rle(holed())}
    meta = {"edgesam": story, "text": ["mine"]}
    region = only([result("brush", value, origin="prediction-changed", meta=meta)])
    assert (region.origin, region.story) == ("prediction-changed", story)
    drawn = only([result("brush", value, meta=[1])])
    assert (drawn.origin, drawn.story) == (None, None)


# --- why not ---


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        pytest.param(
            result("brush", {"rle": brush_rle(np.ones((80, 60), np.bool_))}, original_width=60)
            | {"original_height": 80},
            "drawn on a picture of 60x80 pixels, the image has 80x60",
            id="on its side",
        ),
        pytest.param(
            result("polygon", {"points": percent_points((0, 0), (9, 0), (0, 9))})
            | {"original_width": 160, "original_height": 120},
            "drawn on a picture of 160x120",
            id="drawn on a larger picture",
        ),
        pytest.param(
            {
                k: v
                for k, v in result("brush", {"rle": brush_rle(np.ones((9, 9), np.bool_))}).items()
                if not k.startswith("original")
            },
            "has 81 pixels, its image 80x60",
            id="its own size alone is wrong",
        ),
        pytest.param(
            result("bitmask", {"imageDataURL": bitmask_uri(np.ones((9, 9), np.bool_))}),
            "bitmask has 9x9 pixels, its image 80x60",
            id="a bitmask of another size",
        ),
        pytest.param(result("brush", {"rle": [0, 1, 2]}), "cut short or damaged", id="torn RLE"),
        pytest.param(result("brush", {"rle": "abc"}), "not a list of numbers", id="no RLE"),
        pytest.param(
            result("bitmask", {"imageDataURL": "data:image/png;base64,iVBORw0KGgoAAAA="}),
            "PNG is cut short or damaged",
            id="torn PNG",
        ),
        pytest.param(
            result("bitmask", {"imageDataURL": "http://127.0.0.1/secret.png"}),
            "not stored in the annotation",
            id="a bitmask that is elsewhere",
        ),
        pytest.param(
            result("brush", {"rle": brush_rle(np.zeros(SIZE, np.bool_))}),
            "covers no pixel",
            id="nothing left",
        ),
        pytest.param(
            result("polygon", {"points": [[200, 200], [300, 200], [300, 300]]}),
            "covers no pixel",
            id="outside the image",
        ),
        pytest.param(
            result("polygon", {"points": [[1, 1], [5, 5]]}), "fewer than three", id="a line"
        ),
        pytest.param(
            result("polygon", {"points": [[1, 1], [5, 5], [9, 1]], "closed": False}),
            "not closed",
            id="an open polygon",
        ),
        pytest.param(
            result("polygon", {"points": [[1, float("nan")], [5, 5], [9, 1]]}),
            "numbers cannot be read",
            id="not a number",
        ),
        pytest.param(
            result("polygon", {"points": "abc"}), "numbers cannot be read", id="no points"
        ),
        pytest.param(
            result("polygon", {"points": [[0, 0], [0, 100]] * 200_000}),
            "too many corners",
            id="a polygon that would fill the memory",
        ),
        pytest.param(
            result("rectangle", {"x": 1, "y": 1}), "numbers cannot be read", id="half a rectangle"
        ),
        pytest.param(
            result("vector", {"vertices": vertices((1, 1), (9, 1), (9, 9)), "closed": False}),
            "open line",
            id="an open vector",
        ),
        pytest.param(
            result(
                "vector",
                {
                    "vertices": [
                        *vertices((1, 1), (9, 1), (9, 9)),
                        {"id": "branch", "x": 50, "y": 50, "prevPointId": "v1"},
                    ],
                    "closed": True,
                },
            ),
            "no single closed line",
            id="a skeleton",
        ),
        pytest.param(
            result("vector", {"vertices": [], "closed": True}),
            "no single closed line",
            id="a vector of nothing",
        ),
        pytest.param(
            result("keypointlabels", {"x": 1, "y": 1, "width": 0.2}), "no area", id="a point"
        ),
    ],
)
def test_a_region_without_a_mask_says_why(broken: dict[str, Any], why: str) -> None:
    with pytest.raises(PromptError) as caught:
        mask_of(broken)
    assert why in caught.value.sentence
