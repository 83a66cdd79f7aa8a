from __future__ import annotations

from typing import Any

import pytest

from backend.label_config import parse_label_config
from edgesam_core.errors import LabelConfigError
from tests.backend.conftest import BRUSH_CONFIG

SMART = (
    '<KeyPointLabels name="kp" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels>'
)


def config(inner: str, image: str = '<Image name="image" value="$image"/>') -> str:
    return f"<View>{image}{inner}{SMART}</View>"


def chosen(inner: str, *labels: str, every_kind: bool = False) -> list[tuple[Any, ...]]:
    outputs = parse_label_config(config(inner)).outputs("image", labels, every_kind=every_kind)
    return [(o.control.name, o.control.region_type, o.labels) for o in outputs]


def control(tag: str, name: str, *labels: str, more: str = "") -> str:
    words = "".join(f'<Label value="{label}"/>' for label in labels)
    return f'<{tag} name="{name}" toName="image" {more}>{words}</{tag}>'


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        pytest.param(
            control("BrushLabels", "b", "Cat"), ("b", "brushlabels", ("Cat",)), id="brush"
        ),
        pytest.param(
            control("PolygonLabels", "p", "Cat"), ("p", "polygonlabels", ("Cat",)), id="polygon"
        ),
        pytest.param(
            control("BitmaskLabels", "m", "Cat"), ("m", "bitmasklabels", ("Cat",)), id="bitmask"
        ),
        pytest.param(
            control("Labels", "l", "Cat") + '<Brush name="b" toName="image"/>',
            ("b", "brush", ("Cat",)),
            id="labels and brush",
        ),
        pytest.param(
            control("PolygonLabels", "p", "Cat") + control("BrushLabels", "b", "Cat"),
            ("p", "polygonlabels", ("Cat",)),
            id="the first in the config",
        ),
        pytest.param(
            control("PolygonLabels", "p", "Dog") + control("BrushLabels", "b", "Cat"),
            ("b", "brushlabels", ("Cat",)),
            id="the one that offers the label",
        ),
        pytest.param(
            control("BrushLabels", "b", "Cat", more='smart="true"')
            + control("PolygonLabels", "p", "Dog", "Cow"),
            ("p", "polygonlabels", ()),
            id="one that is no smart tool",
        ),
        pytest.param(
            control("BrushLabels", "b", "Cat", more='smart="true"'),
            ("b", "brushlabels", ("Cat",)),
            id="a smart one if it is alone",
        ),
        pytest.param(
            control("RectangleLabels", "r", "Cat", more='smart="true"')
            + control("RectangleLabels", "boxes", "Cat"),
            ("boxes", "rectanglelabels", ("Cat",)),
            id="boxes instead of masks",
        ),
        pytest.param(
            control("RectangleLabels", "r", "Cat", more='smart="true"'),
            ("r", "rectanglelabels", ("Cat",)),
            id="the smart rectangle if there is nothing else",
        ),
        pytest.param(
            control("RectangleLabels", "r", "Cat") + control("BrushLabels", "b", "Cat"),
            ("b", "brushlabels", ("Cat",)),
            id="a mask rather than a box",
        ),
    ],
)
def test_the_suggestion_goes_to(inner: str, expected: tuple[Any, ...]) -> None:
    assert chosen(inner, "Cat") == [expected]


def test_every_kind_of_control_can_be_served_at_once() -> None:
    inner = (
        control("RectangleLabels", "smart", "Cat", more='smart="true"')
        + control("BrushLabels", "b", "Cat")
        + control("PolygonLabels", "p", "Cat")
        + control("RectangleLabels", "boxes", "Cat")
    )
    names = [name for name, _, _ in chosen(inner, "Cat", every_kind=True)]
    assert names == ["b", "p", "boxes"]


def test_a_label_that_the_control_lacks_gives_way_to_its_only_one_or_none() -> None:
    assert chosen(control("BrushLabels", "b", "Thing"), "Cat")[0][2] == ("Thing",)
    assert chosen(control("BrushLabels", "b", "A", "B"), "Cat")[0][2] == ()


def test_labels_read_from_the_task_may_be_any_word() -> None:
    inner = '<BrushLabels name="b" toName="image" value="$labels"/>'
    assert chosen(inner, "Anything")[0][2] == ("Anything",)


def test_an_alias_stands_for_its_label() -> None:
    inner = '<BrushLabels name="b" toName="image"><Label value="Cat" alias="c"/></BrushLabels>'
    assert chosen(inner, "c")[0][2] == ("c",)


def test_controls_of_another_image_are_not_taken() -> None:
    with pytest.raises(LabelConfigError):
        chosen('<BrushLabels name="b" toName="other"/>', "Cat")


def test_the_config_of_the_recordings_has_its_smart_tools() -> None:
    assert parse_label_config(BRUSH_CONFIG).smart_tools == ("tag2", "tag3")


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        pytest.param(None, "no labelling config", id="null"),
        pytest.param("", "no labelling config", id="empty"),
        pytest.param("<View", "not valid XML", id="torn"),
        pytest.param("<View/>", "no <Image>", id="no image"),
        pytest.param('<View><Text name="t" value="$t"/></View>', "no <Image>", id="text"),
        pytest.param(
            '<!DOCTYPE v [<!ENTITY a "b">]><View>&a;</View>', "document type", id="entities"
        ),
        pytest.param("<View>" + " " * 1_000_001 + "</View>", "characters", id="huge"),
    ],
)
def test_a_config_that_cannot_be_served_is_told_in_a_sentence(xml: Any, said: str) -> None:
    with pytest.raises(LabelConfigError, match=said):
        parse_label_config(xml)


def test_a_config_without_a_mask_control_is_told() -> None:
    with pytest.raises(LabelConfigError, match="BrushLabels"):
        chosen("", "Cat")


def test_a_prompt_for_a_tag_that_is_no_image_is_told() -> None:
    with pytest.raises(LabelConfigError, match="other"):
        parse_label_config(BRUSH_CONFIG).image("other")
