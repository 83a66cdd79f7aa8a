"""A mask as the region that Label Studio's page accepts, in whichever form the project wants.

The forms are those that the real page turned into regions: brush RLE, RGBA bitmask, closed polygon,
upright rectangle, each alone with its own labels or as a pair with a ``<Labels>`` result of the
same id. Every region carries a fresh short id (an old one would replace the region that has it),
``origin: "prediction"`` (from which Label Studio itself derives that a mask was touched up) and
``meta.edgesam`` (which model, which prompt, which shape), which survives accepting and submitting.
``meta.text`` is the annotator's and stays untouched.

This file runs no model and chooses no control: it is the last line of the click's path.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backend import logs
from backend.bitmask_png import bitmask_png
from backend.label_config import Output, Shape
from edgesam_core.arrays import BoxXYXY
from edgesam_core.clean import remove_specks
from edgesam_core.decode import Prompt
from edgesam_core.geometry import box_to_percent, pixels_to_percent
from edgesam_core.plainer import make_plainer
from edgesam_core.polygon import mask_to_polygons
from edgesam_core.rle import mask_to_brush_rle
from edgesam_core.windowed_mask import WindowedMask

_ID_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 10  # as long as the page's own ids
_OUTLINE_KEYS = ("points", "x", "y", "width", "height", "rotation")
_LEAST_RLE_BYTES = 100_000  # one run in each row of 10000x10000 pixels takes 88000


@dataclass(frozen=True)
class ResultSettings:
    """How a mask is turned into regions."""

    polygon_tolerance_px: float = 1.0
    # Pixels of the original image by which a polygon may leave the mask's outline; 0 keeps every
    # corner.
    polygon_max_vertices: int = 300
    # Corners of a polygon at most; where the tolerance would give more, it grows.
    min_region_px: int = 64
    # Islands and holes of fewer pixels are removed (ragged regions freeze the page); the largest
    # island always stays.
    max_rle_bytes: int = 256 * 1024
    # Numbers in a brush region's RLE (each 2 to 4 characters of JSON); a more ragged mask is made
    # plainer: islands and holes go, then gaps along rows. Photos of 4000x3000: median 14000, the
    # longest of 288 masks 77000.
    outputs: str = "first"
    # `first`: one region per object, in the first control that can hold it. `all`: one in each
    # kind of control that the config offers beside its smart tools.

    def __post_init__(self) -> None:
        """Refuse values that make no region."""
        if self.polygon_tolerance_px < 0 or self.min_region_px < 0:
            raise ValueError("polygon_tolerance_px and min_region_px should not be negative.")
        if self.polygon_max_vertices < 3:
            raise ValueError("polygon_max_vertices should be at least 3.")
        if self.max_rle_bytes < _LEAST_RLE_BYTES:
            raise ValueError(f"max_rle_bytes should be at least {_LEAST_RLE_BYTES}.")
        if self.outputs not in ("first", "all"):
            raise ValueError(f"outputs should be 'first' or 'all', not {self.outputs!r:.40}.")


@dataclass(frozen=True)
class Suggested:
    """One object's mask with what a region says about it."""

    mask: WindowedMask
    # already cleaned, not empty
    prompt: Prompt
    # in original pixels
    score: float
    item_index: int | None
    to_name: str
    version: str
    # of the bundle
    proposed_box_xyxy: BoxXYXY | None = None
    # in original pixels, where the granularity prior let one join the prompt


def clean_mask(mask: WindowedMask, settings: ResultSettings) -> WindowedMask:
    """The mask without islands and pin-holes below the floor, and not too ragged to be sent.

    The largest island stays.
    """
    floor_px = settings.min_region_px
    cleaned = remove_specks(mask, min_area_px=floor_px)
    plain = make_plainer(cleaned, max_rle_bytes=settings.max_rle_bytes, min_area_px=floor_px)
    if plain is not cleaned:
        logs.current().note = "a ragged mask was made plainer: EDGESAM_MAX_RLE_BYTES"
    return plain


def regions_for(
    suggested: Suggested, output: Output, settings: ResultSettings
) -> list[dict[str, Any]]:
    """The Label Studio results that show one mask in one control.

    Args:
        suggested: The mask and its story.
        output: The control that it goes to, with the labels that it may carry.
        settings: Polygon tolerance and the like.

    Returns:
        One result, or two with the same id where a ``<Labels>`` names a bare control's region.
    """
    control = output.control
    value = _VALUE_OF[control.shape](suggested, settings)
    height, width = suggested.mask.original_size_hw
    region: dict[str, Any] = {
        "id": fresh_id(),
        "from_name": control.name,
        "to_name": suggested.to_name,
        "type": control.region_type,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value,
        "score": suggested.score,
        "origin": "prediction",
        "meta": {"edgesam": _story(suggested, control.shape, value)},
    }
    if suggested.item_index is not None:
        region["item_index"] = suggested.item_index
    if not output.labels:
        return [region]
    if output.labels_control is None:
        region["value"] = {**value, control.region_type: list(output.labels)}
        return [region]
    label_result = {
        **region,
        "from_name": output.labels_control.name,
        "type": "labels",
        "value": {**value, "labels": list(output.labels)},
    }
    return [region, label_result]


def fresh_id() -> str:
    """Ten random letters and digits: no two regions of an annotation will share it."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def mask_hash(mask: WindowedMask) -> str:
    """A short hash of which pixels of an image are set, however the mask is stored.

    Returns:
        16 hex digits of the sha256 of the image's size and of the runs in it (all rows, then all
        starts, then all stops). Equal for equal masks whatever their windows.
    """
    runs = mask.full_runs()
    numbers = np.concatenate([mask.original_size_hw, runs.rows, runs.starts, runs.stops])
    return hashlib.sha256(numbers.astype("<i4").tobytes()).hexdigest()[:16]


def outline_hash(value: Mapping[str, Any]) -> str:
    """A short hash of the numbers of a polygon or rectangle, whatever it is called.

    Rounded, since the page computes in its own floats: 1e-3 % is 0.04 px at 4000 px.
    """
    numbers = {k: np.round(value[k], 3).tolist() for k in _OUTLINE_KEYS if k in value}
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]


def _story(suggested: Suggested, shape: Shape, value: dict[str, Any]) -> dict[str, Any]:
    """What ``meta.edgesam`` keeps: enough to replay the click and to see whether it was edited."""
    prompt = suggested.prompt
    has_pixels = shape in ("brush", "bitmask")
    shape_hash = mask_hash(suggested.mask) if has_pixels else outline_hash(value)
    drawn: dict[str, Any] = {
        "points": np.round(prompt.point_coords.astype(np.float64), 2).tolist(),
        "labels": prompt.point_labels.astype(int).tolist(),
        "box": _rounded(prompt.box_xyxy),
    }
    if suggested.proposed_box_xyxy is not None:
        drawn["proposed_box"] = _rounded(suggested.proposed_box_xyxy)
    return {"version": suggested.version, "prompt": drawn, "shape_hash": shape_hash}


def _rounded(box_xyxy: BoxXYXY | None) -> list[float] | None:
    return None if box_xyxy is None else np.round(box_xyxy.astype(np.float64), 2).tolist()


def _brush_value(suggested: Suggested, settings: ResultSettings) -> dict[str, Any]:
    return {"format": "rle", "rle": mask_to_brush_rle(suggested.mask)}


def _bitmask_value(suggested: Suggested, settings: ResultSettings) -> dict[str, Any]:
    png = base64.b64encode(bitmask_png(suggested.mask)).decode("ascii")
    return {"imageDataURL": f"data:image/png;base64,{png}"}


def _polygon_value(suggested: Suggested, settings: ResultSettings) -> dict[str, Any]:
    """One ring, since a polygon region holds one: the island that was clicked, or the largest."""
    rings = mask_to_polygons(
        suggested.mask,
        tolerance_px=settings.polygon_tolerance_px,
        max_vertices=settings.polygon_max_vertices,
    )
    prompt = suggested.prompt
    clicks = prompt.point_coords[prompt.point_labels > 0]
    ring = max(rings, key=lambda r: (_count_inside(clicks, r), _area(r)))
    points = pixels_to_percent(ring, suggested.mask.original_size_hw)
    return {"points": points.tolist(), "closed": True}


def _rectangle_value(suggested: Suggested, settings: ResultSettings) -> dict[str, Any]:
    box = suggested.mask.box_xyxy
    assert box is not None, "an empty mask is refused before it comes here"
    x, y, width, height = box_to_percent(box, suggested.mask.original_size_hw)
    return {"x": x, "y": y, "width": width, "height": height, "rotation": 0}


_VALUE_OF: dict[Shape, Callable[[Suggested, ResultSettings], dict[str, Any]]] = {
    "brush": _brush_value,
    "bitmask": _bitmask_value,
    "polygon": _polygon_value,
    "rectangle": _rectangle_value,
}


def _area(ring: npt.NDArray[np.floating]) -> float:
    """Square pixels inside a ring (shoelace formula)."""
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _count_inside(points: npt.NDArray[np.floating], ring: npt.NDArray[np.floating]) -> int:
    """How many points lie in a ring: an odd number of edges to their right."""
    x, y = points[:, 0, None], points[:, 1, None]  # [N, 1]
    x0, y0 = ring[:, 0], ring[:, 1]  # [V]
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    crosses = (y0 > y) != (y1 > y)  # [N, V]; a horizontal edge never does
    rise = np.where(y1 == y0, 1, y1 - y0)
    right_of_point = x < (x1 - x0) * (y - y0) / rise + x0
    return int(np.count_nonzero(np.count_nonzero(crosses & right_of_point, axis=1) % 2))
