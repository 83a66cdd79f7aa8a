"""Somebody labels in the real page: every click, mask and stored annotation is Label Studio's own.

The masks come from a bundle that answers with discs and filled boxes, so that it is known
beforehand where they lie; the model of the repository is asked too, at the end.
"""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from edgesam_core.rle import brush_rle_to_mask
from tests import parts
from tests.system.conftest import jpeg, photo
from tests.system.page import Region

pytestmark = pytest.mark.slow

Mask = npt.NDArray[np.bool_]

CLICK = (172, 118)
CORRECTION = (205, 135)
BOX = (285, 95, 352, 168)
"""Where the screenshots are clicked: an eye, the skin beside it, the other eye."""


def readme_config() -> str:
    """The labelling config that the README asks people to paste."""
    text = (parts.REPOSITORY / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<View>.*?</View>", text, re.DOTALL)
    assert found
    return found[0]


LABELS = '<Label value="Cat" background="#0000FF"/><Label value="Dog" background="#00FF00"/>'
"""Colours that none of the photos has."""


def config(output: str) -> str:
    """Smart tools beside one control that holds the masks."""
    return f"""<View>
      <Image name="image" value="$image"/>
      <{output} name="mask" toName="image">{LABELS}</{output}>
      <Header value="Click" size="6"/>
      <KeyPointLabels name="click" toName="image" smart="true">{LABELS}</KeyPointLabels>
      <Header value="Rectangle" size="6"/>
      <RectangleLabels name="box" toName="image" smart="true">{LABELS}</RectangleLabels>
    </View>"""


LABELS_AND_BRUSH = f"""<View>
  <Image name="image" value="$image"/>
  <Labels name="label" toName="image">{LABELS}</Labels>
  <Brush name="mask" toName="image"/>
  <KeyPoint name="click" toName="image" smart="true"/>
  <Rectangle name="box" toName="image" smart="true"/>
</View>"""


def small() -> bytes:
    return jpeg(photo("coffee.png"))


def rotated() -> bytes:
    """Stored lying, 600 x 400; shown upright, 400 x 600."""
    return jpeg(photo("coffee.png"), orientation=6)


def large() -> bytes:
    return jpeg(photo("chelsea.png").resize((4000, 3000)))


def test_clicks_and_rectangles_become_the_masks_that_are_stored(labelling, api, backend):
    project = api.create_project("clicks and rectangles", readme_config())
    task = api.upload(project, "cat.jpg", jpeg(photo("chelsea.png")))
    assert api.attach(project, backend.url).status_code == 201
    labelling.open_task(project, task)

    first = labelling.click("Cat", 140, 100)
    second = labelling.click("Cat", 165, 120, negative=True)
    assert [prompt["is_positive"] for prompt in second.prompts] == [True, False]
    assert mask_of(first.regions[0])[120, 165]
    assert not mask_of(second.regions[0])[120, 165]
    labelling.accept()

    labelling.drag("Dog", 250, 60, 400, 200)
    boxed = labelling.drag("Dog", 30, 20, 90, 70)
    assert len(boxed.prompts) == len(boxed.regions) == 2
    labelling.accept()
    turned = labelling.turn_rectangle("Cat", (60, 180), (160, 220), (145, 260))
    assert turned.prompts[0]["value"]["rotation"] == pytest.approx(21.8, abs=1)
    labelling.accept()
    labelling.submit()

    (annotation,) = api.annotations(task)
    cat, dog, small_dog, turned_cat = annotation["result"]
    assert_stored_as_suggested([cat], second.regions, label="Cat")
    assert_stored_as_suggested([dog], boxed.regions[:1], label="Dog")
    assert_stored_as_suggested([small_dog], boxed.regions[1:], label="Dog")
    assert_stored_as_suggested([turned_cat], turned.regions, label="Cat")
    assert mask_of(cat)[100, 140]
    for region, box in ((dog, (250, 60, 400, 200)), (small_dog, (30, 20, 90, 70))):
        y, x = np.nonzero(mask_of(region))
        assert (x.min(), y.min(), x.max(), y.max()) == pytest.approx(box, abs=8)
    assert mask_of(turned_cat)[220, 110]


@pytest.mark.parametrize(
    ("label_config", "image", "size", "at"),
    [
        pytest.param(config("BrushLabels"), rotated, (400, 600), (250, 400), id="brush, EXIF"),
        pytest.param(config("PolygonLabels"), small, (600, 400), (400, 150), id="polygon"),
        pytest.param(config("BitmaskLabels"), rotated, (400, 600), (250, 400), id="bitmask, EXIF"),
        pytest.param(config("RectangleLabels"), small, (600, 400), (400, 150), id="rectangle"),
        pytest.param(
            LABELS_AND_BRUSH, large, (4000, 3000), (2600, 900), id="Labels + Brush, large"
        ),
    ],
)
def test_every_form_of_a_mask_is_drawn_and_stored(
    labelling, api, backend, label_config, image, size, at
):
    project = api.create_project("one form", label_config)
    task = api.upload(project, "image.jpg", image())
    assert api.attach(project, backend.url).status_code == 201
    labelling.open_task(project, task)
    inside, outside = (at[0] + size[0] * 0.03, at[1]), (size[0] * 0.1, size[1] * 0.1)
    bare = labelling.colours(inside, outside)

    suggested = labelling.click("Cat", *at).regions
    assert (suggested[0]["original_width"], suggested[0]["original_height"]) == size
    mask = mask_of(suggested[0])
    y, x = np.nonzero(mask)
    assert (x.mean(), y.mean()) == pytest.approx(at, abs=0.01 * max(size))
    assert 0.002 < mask.mean() < 0.2

    drawn = labelling.colours(inside, outside)
    assert distance(drawn[0], bare[0]) > 20
    assert distance(drawn[1], bare[1]) < 5
    labelling.accept()
    accepted = labelling.colours(inside, outside)
    assert distance(accepted[0], bare[0]) > 20
    assert distance(accepted[1], bare[1]) < 5
    labelling.submit()

    (annotation,) = api.annotations(task)
    assert_stored_as_suggested(annotation["result"], suggested, label="Cat")


def test_a_click_on_the_second_picture_is_answered_there(labelling, api, backend):
    several = config("BrushLabels").replace('value="$image"', 'valueList="$images"')
    project = api.create_project("two pictures", several)
    pictures = [
        api.upload_file(project, f"{name}.jpg", jpeg(photo(name + ".png")))
        for name in ("chelsea", "coffee")
    ]
    (task,) = api.import_tasks(project, {"images": pictures})
    assert api.attach(project, backend.url).status_code == 201
    labelling.open_task(project, task)

    first = labelling.click("Cat", 140, 100)
    assert first.regions[0]["item_index"] == 0
    labelling.turn_to(1)
    second = labelling.click("Cat", 420, 240)
    # The prompt of the other picture, still pending, comes along.
    assert [prompt["item_index"] for prompt in second.prompts] == [0, 1]
    labelling.accept()
    labelling.submit()

    (annotation,) = api.annotations(task)
    (region,) = annotation["result"]
    assert region["item_index"] == 1
    assert_stored_as_suggested([region], second.regions, label="Cat")
    assert mask_of(region).shape == (400, 600)
    assert mask_of(region)[240, 420]


def test_model_of_the_repository_labels_a_photo_and_sits_for_screenshots(
    labelling, api, label_studio, start_backend, default_model, pictures
):
    with_token = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.personal_access_token,
    }
    project = api.create_project("the model itself", readme_config())
    task = api.upload(project, "cat.jpg", jpeg(photo("chelsea.png")))
    assert api.attach(project, start_backend(default_model, with_token).url).status_code == 201
    labelling.tab.set_viewport_size({"width": 1400, "height": 830})
    labelling.open_task(project, task)

    labelling.choose("keypoint", "Cat")
    labelling.unfold_smart_tools()
    labelling.picture(pictures / "tools.png")
    first = labelling.click("Cat", *CLICK)
    assert mask_of(first.regions[0])[CLICK[::-1]]
    labelling.picture(pictures / "suggestion.png")
    corrected = labelling.click("Cat", *CORRECTION, negative=True)
    assert mask_of(corrected.regions[0]).any()
    labelling.picture(pictures / "corrected.png")
    labelling.accept()
    boxed = labelling.drag("Cat", *BOX)
    assert mask_of(boxed.regions[0]).any()
    labelling.accept()
    labelling.submit()

    (annotation,) = api.annotations(task)
    clicked, drawn = annotation["result"]
    assert_stored_as_suggested([clicked], corrected.regions, label="Cat")
    assert_stored_as_suggested([drawn], boxed.regions, label="Cat")


def mask_of(region: Region) -> Mask:
    """A region's pixels, whatever its form."""
    size_hw = (region["original_height"], region["original_width"])
    value = region["value"]
    if "rle" in value:
        ours = brush_rle_to_mask(value["rle"], size_hw)
        from label_studio_sdk.converter import brush

        theirs = brush.decode_rle(value["rle"]).reshape(*size_hw, 4)[:, :, 3] >= 128
        assert np.array_equal(ours, theirs)
        return ours
    if "imageDataURL" in value:
        png = base64.b64decode(value["imageDataURL"].removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(png)) as image:
            assert image.size == size_hw[::-1]
            return np.asarray(image)[:, :, 3] > 0
    mask = Image.new("1", size_hw[::-1])
    scale = np.array(size_hw[::-1]) / 100
    if "points" in value:
        corners = np.array(value["points"]) * scale
    else:
        left_top = np.array([value["x"], value["y"]]) * scale
        corners = np.array(
            [left_top, left_top + np.array([value["width"], value["height"]]) * scale]
        )
    draw = ImageDraw.Draw(mask)
    drawn = draw.polygon if "points" in value else draw.rectangle
    drawn([tuple(corner) for corner in corners.tolist()], fill=1)
    return np.array(mask)


def distance(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Between two colours, the largest difference of a channel."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def assert_stored_as_suggested(
    stored: list[Region], suggested: list[Region], *, label: str
) -> None:
    """Label Studio kept the suggestion as it was: shape, label, and all that we say about it."""
    ours = {region["type"]: region for region in suggested}
    assert {region["type"] for region in stored} == set(ours)
    for region in stored:
        kind = region["type"]
        assert region["id"] == ours[kind]["id"]
        assert region["origin"] == "prediction"
        assert region["meta"]["edgesam"] == ours[kind]["meta"]["edgesam"]
        assert region["score"] == pytest.approx(ours[kind]["score"])
        if kind.endswith("labels"):
            assert region["value"][kind] == [label]
        if kind != "labels":
            assert np.array_equal(mask_of(region), mask_of(ours[kind]))
