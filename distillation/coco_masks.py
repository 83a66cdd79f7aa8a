"""One ``segmentation`` of a COCO or LVIS file becomes a mask, or a sentence about what is wrong.

Three forms occur: polygons (a list of ``[x0, y0, x1, y1, ...]``), and column-wise run lengths,
plain (``counts`` a list of numbers) or compressed (``counts`` a string). Run lengths are unpacked
here and not by pycocotools, which fills what damaged ones leave out with whatever lay in memory.

Source:
    COCO's data format; the compressed form is that of cocoapi's ``rleToString``: five bits per
    character from code 48 on, 32 for "goes on", numbers as differences to the one before the last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from edgesam_core.arrays import Mask, SizeHW

Integers = npt.NDArray[np.int64]


def segmentation_to_mask(segmentation: Any, size_hw: SizeHW) -> Mask:
    """The mask of one annotation, [H, W] bool.

    Args:
        segmentation: As in the file.
        size_hw: Of the image.

    Raises:
        ValueError: What is wrong with it, as the second half of a sentence about the mask.
    """
    if isinstance(segmentation, list):
        return _polygons_to_mask(segmentation, size_hw)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ValueError("is neither polygons nor run lengths")
    size = segmentation.get("size")
    if not isinstance(size, list | tuple) or list(size) != list(size_hw):
        raise ValueError(f"has the size (height, width) {size}, its image {list(size_hw)}")
    counts = _read_counts(segmentation["counts"])
    height, width = size_hw
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"has run lengths that are damaged: they do not add up to {size_hw}")
    by_column = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(by_column.reshape(width, height).T)


def mask_to_coco_rle(mask: npt.NDArray[Any]) -> dict[str, Any]:
    """Compressed run lengths of [H, W] bool or 0/1, as they stand in a JSON file."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _polygons_to_mask(polygons: list[Any], size_hw: SizeHW) -> Mask:
    try:
        outlines = [np.array(polygon, np.float64) for polygon in polygons]
    except (TypeError, ValueError):
        raise ValueError("has polygons that are no lists of numbers") from None
    if not outlines:
        raise ValueError("has no polygon")
    if any(o.ndim != 1 or len(o) < 6 or len(o) % 2 or not np.isfinite(o).all() for o in outlines):
        raise ValueError("has a polygon that is not three or more pairs of coordinates")
    # A polygon of four numbers would be taken for a box; six and more are outlines.
    rles = coco_mask.frPyObjects([outline.tolist() for outline in outlines], *size_hw)
    mask: Mask = coco_mask.decode(coco_mask.merge(rles)).astype(np.bool_)
    return mask


def _read_counts(counts: Any) -> Integers:
    """Run lengths, background first."""
    if isinstance(counts, list):
        if not all(type(count) is int for count in counts):
            raise ValueError("has run lengths that are no whole numbers")
        return np.array(counts, np.int64)
    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except (AttributeError, UnicodeEncodeError):
        raise ValueError("has run lengths that are neither a list nor a string") from None
    if len(codes) == 0 or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        raise ValueError("has run lengths that are damaged")
    is_last = (codes & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    lengths = np.diff(np.append(starts, len(codes)))
    if lengths.max() > 12:  # more than 60 bits
        raise ValueError("has run lengths that are damaged")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    is_negative = (codes[is_last] & 16) != 0
    values[is_negative] -= np.int64(1) << (5 * lengths[is_negative])
    # From the fourth on, each number is the difference to the one before the last.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
