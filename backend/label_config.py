"""What a project's labelling config offers: images to read and controls that can hold a mask.

The config is XML that comes with every request. It is parsed here and kept only under its own
text, so two projects cannot see each other's. No document type and no entities: a config has no
use for them, and they are how XML attacks the reader.

Which control gets the suggestion: the first one in the config that can hold a mask of the image
(Brush, Bitmask or Polygon, with its labels or beside a ``<Labels>``), where one that is not itself
a smart tool goes before one that is, and one that offers the drawn label before one that does not.
Only where there is no such control, a rectangle control takes the box around the mask; the smart
one that serves as a prompt comes last there too.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from backend.granularity import ATTRIBUTE, CHOICES
from edgesam_core.errors import LabelConfigError

Shape = Literal["brush", "bitmask", "polygon", "rectangle"]
"""What a control can hold."""

MAX_CONFIG_CHARS = 1_000_000

Attributes = Mapping[str, str]
"""Of a tag, their names in small letters."""

_CONTROL_TAGS: dict[str, Shape] = {
    shape + ending: shape for shape in get_args(Shape) for ending in ("", "labels")
}
_PROMPT_TAGS = frozenset({"keypoint", "keypointlabels", "rectangle", "rectanglelabels"})


@dataclass(frozen=True)
class ImageTag:
    """An ``<Image>``: what its prompts call it, and which task field holds the picture."""

    name: str
    value: str
    # the attribute as written: "$image", "$meta.url", "https://host/$name.png"; valueList's names a
    # field with several pictures, chosen by the prompt's item_index


@dataclass(frozen=True)
class Control:
    """A control that can hold a shape, and where its label is written."""

    shape: Shape
    name: str
    to_names: tuple[str, ...]
    labels: tuple[str, ...]
    # the words that it offers; empty for a bare <Brush> and for labels read from the task
    has_labels: bool
    # BrushLabels rather than Brush
    takes_any_label: bool
    # labels read from the task's data, so any word may be one
    is_smart: bool

    @property
    def region_type(self) -> str:
        """``brushlabels`` or ``brush``: Label Studio's word for a region of this control."""
        return f"{self.shape}labels" if self.has_labels else self.shape

    def offers(self, label: str) -> bool:
        """Whether a region of this control may carry the label."""
        return self.takes_any_label or label in self.labels


@dataclass(frozen=True)
class LabelsControl:
    """A ``<Labels>``: the words for bare controls such as ``<Brush>``."""

    name: str
    to_names: tuple[str, ...]
    labels: tuple[str, ...]
    takes_any_label: bool

    def offers(self, label: str) -> bool:
        """Whether a region may carry the label."""
        return self.takes_any_label or label in self.labels


@dataclass(frozen=True)
class Output:
    """Where a suggestion goes, and with which words."""

    control: Control
    labels_control: LabelsControl | None
    # the <Labels> that names a bare control's region; None where the control has its own
    labels: tuple[str, ...]
    # empty: the region goes out without a label


@dataclass(frozen=True)
class LabelConfig:
    """The parts of a labelling config that a click needs, in document order."""

    images: tuple[ImageTag, ...]
    controls: tuple[Control, ...]
    labels_controls: tuple[LabelsControl, ...]
    smart_tools: tuple[str, ...]
    # names of the smart keypoint and rectangle controls
    granularity_prior: str | None = None
    # what the first smart tool that says anything says (granularity.py); None: as the server does

    def image(self, to_name: str | None = None) -> ImageTag:
        """The image tag of this name, or the first one.

        Raises:
            LabelConfigError: There is no such tag.
        """
        for tag in self.images:
            if to_name in (None, "", tag.name):
                return tag
        raise LabelConfigError(
            f"The prompt is for {to_name!r:.60}, which is no <Image> of the labelling config. "
            "Point the smart tool's toName at the image."
        )

    def is_question(self, shape: str, from_name: str) -> bool:
        """Whether a stored region only asked for a mask, and is none: a box of a smart tool.

        Not where the project's objects are boxes.
        """
        holds_masks = any(control.shape != "rectangle" for control in self.controls)
        return shape == "rectangle" and from_name in self.smart_tools and holds_masks

    def outputs(
        self, to_name: str, labels: tuple[str, ...], *, every_kind: bool = False
    ) -> list[Output]:
        """The controls that a suggestion goes to.

        Args:
            to_name: Name of the image tag.
            labels: The words drawn with the prompt.
            every_kind: One control of each shape that the config offers beside its smart tools,
                instead of the first alone.

        Returns:
            At least one output.

        Raises:
            LabelConfigError: No control of this image can hold a mask or a box.
        """
        mine = [c for c in self.controls if to_name in c.to_names]
        masks = [c for c in mine if c.shape != "rectangle"]
        ordered = sorted(masks or mine, key=lambda c: (c.is_smart, not self._fits(c, labels)))
        if not ordered:
            raise LabelConfigError()
        chosen = ordered[:1]
        if every_kind:
            for control in sorted(mine, key=lambda c: not self._fits(c, labels)):
                if not control.is_smart and control.shape not in {c.shape for c in chosen}:
                    chosen.append(control)
        return [self._output(control, labels) for control in chosen]

    def _labels_control(self, control: Control, labels: tuple[str, ...]) -> LabelsControl | None:
        """The ``<Labels>`` beside a bare control, one that offers the words if there is one."""
        if control.has_labels:
            return None
        beside = [c for c in self.labels_controls if set(c.to_names) & set(control.to_names)]
        fitting = [c for c in beside if any(c.offers(label) for label in labels)]
        return next(iter(fitting or beside), None)

    def _fits(self, control: Control, labels: tuple[str, ...]) -> bool:
        source = self._labels_control(control, labels) or control
        return not labels or any(source.offers(label) for label in labels)

    def _output(self, control: Control, drawn: tuple[str, ...]) -> Output:
        labels_control = self._labels_control(control, drawn)
        source = labels_control or control
        labels = tuple(label for label in drawn if source.offers(label))
        if not labels and len(source.labels) == 1:
            labels = source.labels
        return Output(control, labels_control, labels)


def parse_label_config(xml: object) -> LabelConfig:
    """Read a labelling config.

    Args:
        xml: The config's text as it stood in the request.

    Raises:
        LabelConfigError: There is none, it is not XML, or it has no image tag.
    """
    if not isinstance(xml, str) or not xml.strip():
        raise LabelConfigError(
            "The request has no labelling config. Save one in the project's settings."
        )
    if len(xml) > MAX_CONFIG_CHARS:
        raise LabelConfigError(
            f"The labelling config has {len(xml)} characters, {MAX_CONFIG_CHARS} are allowed. "
            "Shorten it, for example by reading the labels from the tasks."
        )
    return _parse(xml)


@lru_cache(maxsize=64)
def _parse(xml: str) -> LabelConfig:
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise LabelConfigError("The labelling config declares a document type. Remove that line.")
    try:
        root = ET.fromstring(xml)  # no document type, so no entities either
    except ET.ParseError as exc:
        line, column = exc.position
        raise LabelConfigError(
            f"The labelling config is not valid XML (line {line}, column {column}). Mend it in "
            "the project's settings."
        ) from exc
    images: list[ImageTag] = []
    controls: list[Control] = []
    labels_controls: list[LabelsControl] = []
    smart_tools: list[str] = []
    granularity_prior: str | None = None
    for element in root.iter():
        tag = str(element.tag).lower()
        attributes = {name.lower(): value for name, value in element.attrib.items()}
        if tag == "image":
            images.append(_image(attributes))
        elif tag == "labels":
            labels_controls.append(_labels_control(element, attributes))
        elif tag in _CONTROL_TAGS:
            controls.append(_control(tag, element, attributes))
        if tag in _PROMPT_TAGS and _is_smart(attributes):
            smart_tools.append(attributes.get("name", ""))
            granularity_prior = granularity_prior or _granularity_prior(attributes)
    if not images:
        raise LabelConfigError(
            'The labelling config has no <Image> tag. Add <Image name="image" value="$image"/>.'
        )
    return LabelConfig(
        tuple(images),
        tuple(controls),
        tuple(labels_controls),
        tuple(smart_tools),
        granularity_prior,
    )


def _image(attributes: Attributes) -> ImageTag:
    value = attributes.get("valuelist") or attributes.get("value", "")
    return ImageTag(attributes.get("name", ""), value)


def _labels_control(element: ET.Element, attributes: Attributes) -> LabelsControl:
    words, is_dynamic = _words(element, attributes)
    return LabelsControl(attributes.get("name", ""), _to_names(attributes), words, is_dynamic)


def _control(tag: str, element: ET.Element, attributes: Attributes) -> Control:
    has_labels = tag.endswith("labels")
    words, is_dynamic = _words(element, attributes) if has_labels else ((), False)
    return Control(
        shape=_CONTROL_TAGS[tag],
        name=attributes.get("name", ""),
        to_names=_to_names(attributes),
        labels=words,
        has_labels=has_labels,
        takes_any_label=is_dynamic,
        is_smart=_is_smart(attributes),
    )


def _to_names(attributes: Attributes) -> tuple[str, ...]:
    return tuple(part.strip() for part in attributes.get("toname", "").split(","))


def _is_smart(attributes: Attributes) -> bool:
    return "true" in (attributes.get("smart"), attributes.get("smartonly"))


def _words(element: ET.Element, attributes: Attributes) -> tuple[tuple[str, ...], bool]:
    """The labels that a control offers, and whether more come from the task's data."""
    words = []
    for child in element.iter():
        if str(child.tag).lower() == "label":
            label = {name.lower(): value for name, value in child.attrib.items()}
            # Label Studio writes the alias into the result where there is one.
            words.append(label.get("alias") or label.get("value", ""))
    return tuple(word for word in words if word), attributes.get("value", "").startswith("$")


def _granularity_prior(attributes: Attributes) -> str | None:
    """What a smart tool says about the granularity prior.

    Raises:
        LabelConfigError: It is no choice.
    """
    choice = attributes.get(ATTRIBUTE)
    if choice is not None and choice not in CHOICES:
        raise LabelConfigError(
            f"The labelling config says {ATTRIBUTE}={choice!r:.40}. Use one of "
            f"{', '.join(CHOICES)}, or leave it out."
        )
    return choice
