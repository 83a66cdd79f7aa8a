from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.label_config import parse_label_config
from backend.results import (
    ResultSettings,
    Suggested,
    clean_mask,
    fresh_id,
    mask_hash,
    regions_for,
)
from edgesam_core.decode import Prompt
from edgesam_core.polygon import polygon_to_mask
from edgesam_core.rle import brush_rle_to_mask
from edgesam_core.windowed_mask import WindowedMask

SIZE_HW = (480, 640)
LABELS = '<Label value="Cat"/><Label value="Dog"/>'
CONFIGS = {
    "brush": f'<BrushLabels name="tag" toName="image">{LABELS}</BrushLabels>',
    "brush_and_labels": f'<Labels name="label" toName="image">{LABELS}</Labels>'
    '<Brush name="brush" toName="image"/>',
    "polygon": f'<PolygonLabels name="poly" toName="image">{LABELS}</PolygonLabels>',
    "bitmask": f'<BitmaskLabels name="bm" toName="image">{LABELS}</BitmaskLabels>',
    "rectangle": f'<RectangleLabels name="rect" toName="image">{LABELS}</RectangleLabels>',
}


def two_islands() -> WindowedMask:
    full = np.zeros(SIZE_HW, dtype=np.bool_)
    full[100:200, 100:300] = True  # the larger
    full[300:350, 400:450] = True
    return WindowedMask.from_full(full)


def regions(kind: str, mask: WindowedMask | None = None, **changes: Any) -> list[dict[str, Any]]:
    xml = f'<View><Image name="image" value="$image"/>{CONFIGS[kind]}</View>'
    (output,) = parse_label_config(xml).outputs("image", ("Cat",))
    values: dict[str, Any] = {
        "mask": mask or two_islands(),
        "prompt": Prompt.from_clicks([(120, 150, 1), (10.123, 20, 0)]),
        "score": 0.91,
        "item_index": None,
        "to_name": "image",
        "version": "abc",
    }
    return regions_for(Suggested(**{**values, **changes}), output, ResultSettings())


@pytest.mark.parametrize("kind", ["brush", "brush_and_labels", "polygon", "bitmask"])
def test_a_region_has_the_form_that_the_page_accepted(shared: Path, kind: str) -> None:
    text = (shared / "label_studio" / "accepted" / f"{kind}.json").read_text(encoding="utf-8")
    accepted = json.loads(text)["reply"]["results"][0]["result"]
    ours = regions(kind)
    assert len(ours) == len(accepted)
    assert len({region["id"] for region in ours}) == 1
    for mine, theirs in zip(ours, accepted, strict=True):
        same = ("from_name", "to_name", "type", "original_width", "original_height")
        assert [mine[key] for key in same] == [theirs[key] for key in same]
        assert set(mine["value"]) == set(theirs["value"])
        for key, value in theirs["value"].items():
            assert type(mine["value"][key]) is type(value)
            if key in ("labels", "format", "closed", f"{kind}labels"):
                assert mine["value"][key] == value
        assert set(mine) == (set(theirs) - {"readonly"}) | {"score", "origin", "meta"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_region_tells_where_it_comes_from(kind: str) -> None:
    for region in regions(kind):
        assert region["origin"] == "prediction"
        assert isinstance(region["score"], float)
        story = region["meta"]["edgesam"]
        assert story["version"] == "abc"
        assert story["prompt"] == {
            "points": [[120, 150], [10.12, 20]],
            "labels": [1, 0],
            "box": None,
        }
        assert len(story["shape_hash"]) == 16
        assert "text" not in region["meta"]
        assert "item_index" not in region
        assert json.loads(json.dumps(region)) == region


def test_a_page_of_several_is_named() -> None:
    assert {region["item_index"] for region in regions("brush_and_labels", item_index=0)} == {0}


def test_ids_are_short_and_never_the_same() -> None:
    ids = {fresh_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(i) == 10 and i.isalnum() and i.isascii() for i in ids)


def test_brush_and_bitmask_hold_the_mask_itself() -> None:
    mask = two_islands()
    (brush,) = regions("brush", mask)
    assert np.array_equal(brush_rle_to_mask(brush["value"]["rle"], SIZE_HW), mask.full())
    (bitmask,) = regions("bitmask", mask)
    head, _, data = bitmask["value"]["imageDataURL"].partition(",")
    assert head == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (picture.mode, picture.size) == ("RGBA", (640, 480))
    pixels = np.asarray(picture)
    assert np.array_equal(pixels[..., 3], mask.full() * 255)
    assert not pixels[..., :3].any()


@pytest.mark.parametrize(
    ("click", "expected"),
    [
        pytest.param((120, 150), (100, 200, 100, 300), id="the larger island"),
        pytest.param((420, 320), (300, 350, 400, 450), id="the smaller island"),
        pytest.param((5, 5), (100, 200, 100, 300), id="neither: the larger one"),
    ],
)
def test_a_polygon_is_the_island_that_was_clicked(
    click: tuple[float, float], expected: tuple[int, int, int, int]
) -> None:
    (region,) = regions("polygon", prompt=Prompt.from_clicks([(*click, 1)]))
    points = np.array(region["value"]["points"]) * (6.4, 4.8)
    y0, y1, x0, x1 = expected
    drawn = polygon_to_mask(points, SIZE_HW)
    wanted = np.zeros(SIZE_HW, dtype=np.bool_)
    wanted[y0:y1, x0:x1] = True
    assert (drawn & wanted).sum() / (drawn | wanted).sum() > 0.98


def test_a_rectangle_is_the_box_around_the_whole_mask() -> None:
    (region,) = regions("rectangle")
    value = region["value"]
    assert value["rotation"] == 0
    box = [value["x"] * 6.4, value["y"] * 4.8, value["width"] * 6.4, value["height"] * 4.8]
    assert box == pytest.approx([100, 100, 350, 250])


def test_the_hash_is_that_of_the_mask_and_not_of_its_window() -> None:
    mask = two_islands()
    wide = WindowedMask.from_window(mask.full(), 0, 0, SIZE_HW)
    assert mask_hash(mask) == mask_hash(wide)
    moved = WindowedMask(mask.runs, mask.x0 + 1, mask.y0, SIZE_HW)
    assert mask_hash(mask) != mask_hash(moved)
    assert mask_hash(WindowedMask.empty(SIZE_HW)) != mask_hash(mask)
    (brush,) = regions("brush", mask)
    stored = WindowedMask.from_full(brush_rle_to_mask(brush["value"]["rle"], SIZE_HW))
    assert mask_hash(stored) == brush["meta"]["edgesam"]["shape_hash"]


def test_specks_go_and_the_largest_island_stays() -> None:
    full = np.zeros(SIZE_HW, dtype=np.bool_)
    full[10:40, 10:40] = True
    full[20, 20] = False
    full[100, 100] = True
    cleaned = clean_mask(WindowedMask.from_full(full), ResultSettings()).full()
    assert cleaned[20, 20]
    assert not cleaned[100, 100]
    speck = np.zeros(SIZE_HW, dtype=np.bool_)
    speck[3, 3] = True
    assert clean_mask(WindowedMask.from_full(speck), ResultSettings()).area == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"polygon_tolerance_px": -1},
        {"polygon_max_vertices": 2},
        {"min_region_px": -1},
        {"outputs": "many"},
    ],
)
def test_settings_that_make_no_region_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        ResultSettings(**changes)


@pytest.mark.filterwarnings("ignore")  # of the SDK's own imports
@pytest.mark.parametrize("kind", CONFIGS)
def test_label_studios_own_reader_accepts_the_prediction(kind: str) -> None:
    from label_studio_sdk import label_interface

    xml = f'<View><Image name="image" value="$image"/>{CONFIGS[kind]}</View>'
    prediction = {"result": regions(kind), "score": 0.91, "model_version": "abc"}
    reader = label_interface.LabelInterface(config=xml)
    assert reader.validate_prediction(prediction, return_errors=True) == []
