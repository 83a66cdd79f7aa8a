"""The results of an annotation as regions, and each region as a mask or a sentence why it has none.

Label Studio may write one region as several results of one ``id``: its shape, its label, sometimes
the mask once more under the control whose label was selected. Here they are one region again.
Brush RLE and bitmasks keep holes and parts; drawn shapes are painted by the pixel centres inside
their outline (outlines.py). Percents are of the picture as it is shown, EXIF applied; the
editor's ``image_rotation`` changes none of them. Nothing here fetches or writes.

Forms: label_studio 1.23.2; those of brush, bitmask and polygon regions were seen live.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from backend.image_address import is_data_uri, read_data_uri
from backend.outlines import OUTLINES, outline
from edgesam_core.arrays import Mask, SizeHW
from edgesam_core.errors import ImageError, PromptError
from edgesam_core.polygon import polygon_to_mask
from edgesam_core.rle import ALPHA_THRESHOLD, brush_rle_to_mask

UNLABELLED = "object"
"""The label of a region that has none."""

_POINT = "keypoint"
_PIXELS = ("brush", "bitmask")
_DRAWN = frozenset({*OUTLINES, _POINT})
_MAX_PNG_BYTES = 64 * 1024 * 1024
_DAMAGED_PNG = "The bitmask's PNG is cut short or damaged. Draw the region again."


@dataclass(frozen=True)
class Region:
    """One object as an annotation has it."""

    region_id: str
    # unique in its annotation; empty where the annotation names none
    shape: str
    # brush, bitmask, polygon, rectangle, ellipse, vector, or keypoint, which has no area
    label: str
    from_name: str
    to_name: str
    item_index: int | None
    # which picture of a valueList
    result: Mapping[str, Any]
    # the one of its results that holds the shape

    @property
    def origin(self) -> str | None:
        """``prediction``, ``prediction-changed`` or ``manual``; None where it is not said."""
        origin = self.result.get("origin")
        return origin if isinstance(origin, str) else None

    @property
    def story(self) -> dict[str, Any] | None:
        """``meta.edgesam``: what suggested it (results.py); None for what a person drew."""
        meta = self.result.get("meta")
        story = meta.get("edgesam") if isinstance(meta, Mapping) else None
        return story if isinstance(story, dict) else None


def regions_of(results: object) -> list[Region]:
    """The regions of an annotation, in its order.

    Args:
        results: The annotation's ``result``. What is no region of an image (choices, texts,
            relations, spans) is passed over.
    """
    groups: dict[object, list[Mapping[str, Any]]] = {}
    for place, result in enumerate(results if isinstance(results, list) else []):
        if isinstance(result, Mapping) and isinstance(result.get("value"), Mapping):
            name = str(result["id"]) if result.get("id") else place
            groups.setdefault((name, result.get("item_index")), []).append(result)
    regions = []
    for group in groups.values():
        shaped = [(shape, result) for result in group if (shape := _shape(result))]
        # A mask goes before a point or box of the same id, under its own control before another's.
        shaped.sort(key=lambda pair: (pair[0] not in _PIXELS, _word(pair[1]) != pair[0]))
        if shaped:
            regions.append(_region(*shaped[0], group))
    return regions


def region_mask(region: Region, size_hw: SizeHW) -> Mask:
    """The pixels of a region, [H, W] bool, at least one of them True.

    Args:
        region: The region.
        size_hw: (height, width) of its image, EXIF applied.

    Raises:
        PromptError: Why it has no mask, and what to do about it.
    """
    _check_size(region.result, size_hw)
    value = region.result["value"]
    if region.shape == _POINT:
        raise PromptError("A keypoint has no area. Delete it if it was left over from a click.")
    if region.shape == "brush":
        mask = brush_rle_to_mask(value["rle"], size_hw)
    elif region.shape == "bitmask":
        mask = _read_bitmask(value["imageDataURL"], size_hw)
    else:
        mask = polygon_to_mask(outline(region.shape, value, size_hw), size_hw)
    if not mask.any():
        raise PromptError("The region covers no pixel of the image. Delete it, or draw it again.")
    return mask


def _shape(result: Mapping[str, Any]) -> str | None:
    value = result["value"]
    if "rle" in value:
        return "brush"  # under whichever control: the editor, too, shows a brush region
    if "imageDataURL" in value:
        return "bitmask"
    return word if (word := _word(result)) in _DRAWN else None


def _word(result: Mapping[str, Any]) -> str:
    """``brush`` for ``brush`` and ``brushlabels``."""
    return str(result.get("type", "")).lower().removesuffix("labels")


def _region(shape: str, result: Mapping[str, Any], group: Sequence[Mapping[str, Any]]) -> Region:
    index = result.get("item_index")
    return Region(
        region_id=str(result.get("id") or ""),
        shape=shape,
        label=_label([result, *group]),
        from_name=str(result.get("from_name", "")),
        to_name=str(result.get("to_name", "")),
        item_index=index if type(index) is int else None,
        result=result,
    )


def _label(results: Iterable[Mapping[str, Any]]) -> str:
    """The first label that any of them has; further ones of the same control are passed over."""
    for result in results:
        value = result["value"]
        labels = value.get(str(result.get("type", "")).lower()) or value.get("labels")
        if isinstance(labels, list) and labels and isinstance(labels[0], str) and labels[0]:
            return labels[0]
    return UNLABELLED


def _check_size(result: Mapping[str, Any], size_hw: SizeHW) -> None:
    """Refuse a region that was drawn on a picture of another size.

    A brush RLE of 640x480 has as many samples as one of 480x640, so its own header cannot tell.
    """
    height, width = size_hw
    drawn = result.get("original_width"), result.get("original_height")
    if None not in drawn and drawn != (width, height):
        raise PromptError(
            f"The region was drawn on a picture of {drawn[0]!r:.20}x{drawn[1]!r:.20} pixels, the "
            f"image has {width}x{height}. Draw it again on this image."
        )


def _read_bitmask(uri: object, size_hw: SizeHW) -> Mask:
    """The pixels of a bitmask region's PNG whose alpha is at least 128."""
    if not isinstance(uri, str) or not is_data_uri(uri):
        raise PromptError("The bitmask is not stored in the annotation. Draw the region again.")
    try:
        data = read_data_uri(uri, _MAX_PNG_BYTES)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != size_hw[::-1]:
                raise PromptError(
                    f"The bitmask has {image.width}x{image.height} pixels, its image "
                    f"{size_hw[1]}x{size_hw[0]}. Draw the region again on this image."
                )
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    except (ImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as exc:
        raise PromptError(_DAMAGED_PNG) from exc
    mask: Mask = alpha >= ALPHA_THRESHOLD
    return mask
