"""Smart regions as the page sends them: clicks and rectangles in percent, checked.

prompts.py says what they ask for. What may stand in ``context.result`` and is no prompt: the
``labels`` half of a ``<Labels>`` pair (its words are taken), per-region choices and texts, and
keypoint results that hold an accepted mask (an RLE and no coordinates).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgesam_core.arrays import SizeHW
from edgesam_core.errors import PromptError

_KEYPOINT_TYPES = ("keypointlabels", "keypoint")
_RECTANGLE_TYPES = ("rectanglelabels", "rectangle")
_FAR_AWAY = 1e6  # percent or degrees; sums and products of smaller numbers stay finite


@dataclass(frozen=True)
class Keypoint:
    """A click in percent of the image."""

    x_percent: float
    y_percent: float
    is_positive: bool


@dataclass(frozen=True)
class Rectangle:
    """A drawn box in percent of the image, turned clockwise about its top-left corner."""

    x_percent: float
    y_percent: float
    width_percent: float
    height_percent: float
    rotation_degrees: float

    def encloses(self, point: Keypoint) -> bool:
        """Whether a click lies in the unturned rectangle."""
        dx = point.x_percent - self.x_percent
        dy = point.y_percent - self.y_percent
        return 0 <= dx <= self.width_percent and 0 <= dy <= self.height_percent

    @property
    def area(self) -> float:
        """In square percent."""
        return self.width_percent * self.height_percent


@dataclass(frozen=True)
class PromptRegion:
    """One smart region of the context."""

    shape: Keypoint | Rectangle
    to_name: str
    labels: tuple[str, ...]
    item_index: int | None
    original_size_hw: SizeHW | None
    # as the page saw the image; None where the caller did not say
    region_id: str | None
    # made at random by the page; None where the caller did not say


def read_regions(results: Sequence[dict[str, Any]]) -> Iterator[PromptRegion]:
    """The prompts among the results, in the order in which they were drawn.

    Raises:
        PromptError: A region of a type that is no prompt, or one that cannot be read.
    """
    words = {_id(r): _words(r, "labels") for r in results if r.get("type") == "labels"}
    drawn_ids = {_id(r) for r in results if _is_drawn(r)} - {None}
    for result in results:
        kind, region_id = result.get("type"), _id(result)
        if _is_drawn(result):
            own = _words(result, str(kind)) or _words(result, "labels")
            paired = words.get(region_id) if region_id else None
            yield _read_region(result, paired or own)
        elif kind in _KEYPOINT_TYPES + _RECTANGLE_TYPES and "rle" in _value(result):
            continue  # an accepted mask under a selected label, not a prompt
        elif region_id not in drawn_ids:
            raise PromptError(
                f"A {str(kind)!r:.40} region cannot be a prompt. Use the smart keypoint or the "
                "smart rectangle tool."
            )


def _is_drawn(result: dict[str, Any]) -> bool:
    if result.get("type") not in _KEYPOINT_TYPES + _RECTANGLE_TYPES:
        return False
    value = _value(result)
    return "rle" not in value or ("x" in value and "y" in value)


def _read_region(result: dict[str, Any], labels: tuple[str, ...]) -> PromptRegion:
    value = _value(result)
    shape: Keypoint | Rectangle
    if result["type"] in _KEYPOINT_TYPES:
        # Label Studio's own page writes is_positive, its video example's page value.positive.
        is_positive = bool(result.get("is_positive", value.get("positive", True)))
        shape = Keypoint(_number(value, "x"), _number(value, "y"), is_positive)
    else:
        shape = Rectangle(
            _number(value, "x"),
            _number(value, "y"),
            _number(value, "width"),
            _number(value, "height"),
            _number(value, "rotation", 0.0),
        )
    width, height = result.get("original_width"), result.get("original_height")
    seen = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    item_index = result.get("item_index")
    if item_index is not None and not _is_index(item_index):
        raise PromptError("The prompt's item_index should be a number from 0. Reload the page.")
    return PromptRegion(
        shape=shape,
        to_name=str(result.get("to_name") or ""),
        labels=labels,
        item_index=item_index,
        original_size_hw=seen,
        region_id=_id(result),
    )


def _id(result: dict[str, Any]) -> str | None:
    region_id = result.get("id")
    return region_id if isinstance(region_id, str) else None


def _value(result: dict[str, Any]) -> dict[str, Any]:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _words(result: dict[str, Any], key: str) -> tuple[str, ...]:
    words = _value(result).get(key)
    return tuple(word for word in words if isinstance(word, str)) if isinstance(words, list) else ()


def _number(value: dict[str, Any], key: str, default: float | None = None) -> float:
    number = value.get(key, default)
    if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
        raise PromptError(f"The prompt's {key!r} is not a number. Draw it again.")
    if abs(number) > _FAR_AWAY:
        raise PromptError(f"The prompt's {key!r} lies far outside the image. Draw it again.")
    return float(number)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
