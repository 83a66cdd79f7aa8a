"""Somebody labels in the real page: every click, mask and stored annotation is Label Studio's own.

The masks come from a bundle that answers with discs and filled boxes, so that it is known
beforehand where they lie; the model of the repository is asked too, at the end.
"""

from __future__ import annotations

import base64
import io
import re
from typing import Any

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


def readme_config() -> str:
    """The labelling config that the README asks people to paste."""
    text = (parts.REPOSITORY / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<View>.*?</View>", text, re.DOTALL)
    assert found
    return found[0]


SMART_TOOLS = """
  <KeyPointLabels name="click" toName="image" smart="true">
    <Label value="Cat"/><Label value="Dog"/>
  </KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true">
    <Label value="Cat"/><Label value="Dog"/>
  </RectangleLabels>
"""


def test_clicks_and_a_box_become_the_masks_that_are_stored(labelling, api, backend):
    project = api.create_project("clicks and a box", readme_config())
    task = api.upload(project, "cat.jpg", jpeg(photo("chelsea.png")))
    assert api.attach(project, backend.url).status_code == 201
    labelling.open_task(project, task)

    first = labelling.click("Cat", 140, 100)
    second = labelling.click("Cat", 165, 120, negative=True)
    assert [prompt["is_positive"] for prompt in second.prompts] == [True, False]
    assert mask_of(first.regions[0])[120, 165]
    assert not mask_of(second.regions[0])[120, 165]
    labelling.accept()

    boxed = labelling.drag("Dog", 250, 60, 400, 220)
    labelling.accept()
    labelling.submit()

    (annotation,) = api.annotations(task)
    cat, dog = annotation["result"]
    assert_stored_as_suggested(cat, second.regions[0], label="Cat")
    assert_stored_as_suggested(dog, boxed.regions[0], label="Dog")
    assert mask_of(cat)[100, 140]
    y, x = np.nonzero(mask_of(dog))
    assert (x.min(), y.min(), x.max(), y.max()) == pytest.approx((250, 60, 400, 220), abs=8)


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


def assert_stored_as_suggested(stored: Region, suggested: Region, *, label: str) -> None:
    """Label Studio kept the suggestion as it was: shape, label, and all that we say about it."""
    kind = suggested["type"]
    assert stored["type"] == kind
    assert stored["value"][kind] == [label]
    assert stored["id"] == suggested["id"]
    assert stored["origin"] == "prediction"
    assert stored["meta"]["edgesam"] == suggested["meta"]["edgesam"]
    assert stored["score"] == pytest.approx(suggested["score"])
    assert np.array_equal(mask_of(stored), mask_of(suggested))
