from __future__ import annotations

from typing import Any

import pytest

from backend.label_config import ImageTag, parse_label_config
from backend.task_pictures import image_uri
from edgesam_core.errors import ImageError


def image_tag(value: str) -> ImageTag:
    return parse_label_config(f'<View><Image name="image" {value}/></View>').image()


@pytest.mark.parametrize(
    ("value", "data", "item_index", "expected"),
    [
        pytest.param('value="$image"', {"image": "/data/x.png"}, None, "/data/x.png", id="field"),
        pytest.param('value="$meta.url"', {"meta": {"url": "u"}}, None, "u", id="nested"),
        pytest.param('value="$a.b"', {"a.b": "u"}, None, "u", id="a key with a dot"),
        pytest.param('value="$list[1]"', {"list": ["u", "v"]}, None, "v", id="indexed"),
        pytest.param('value="http://h/?n=$n"', {"n": 7}, None, "http://h/?n=7", id="template"),
        pytest.param('valueList="$images"', {"images": ["u", "v"]}, 1, "v", id="second page"),
        pytest.param('valueList="$images"', {"images": ["u", "v"]}, None, "u", id="first page"),
    ],
)
def test_the_picture_of_a_task_is_found(
    value: str, data: Any, item_index: int | None, expected: str
) -> None:
    tag = image_tag(value)
    assert image_uri(tag, data, item_index) == expected


@pytest.mark.parametrize(
    ("value", "data", "item_index"),
    [
        pytest.param('value="$image"', {}, None, id="no field"),
        pytest.param('value="$image"', {"image": None}, None, id="null"),
        pytest.param('value="$image"', {"image": 7}, None, id="number"),
        pytest.param('valueList="$images"', {"images": ["u"]}, 1, id="no second page"),
        pytest.param('valueList="$images"', {"images": []}, None, id="no pages"),
        pytest.param("", {"image": "u"}, None, id="no value"),
    ],
)
def test_a_task_without_the_picture_is_told(value: str, data: Any, item_index: int | None) -> None:
    tag = image_tag(value)
    with pytest.raises(ImageError):
        image_uri(tag, data, item_index)
