"""Mask to COCO's compressed run lengths, byte for byte as pycocotools writes them.

The serving environment has no pycocotools; data sets for training are written here and read with it
elsewhere. Label Studio's brush RLE is another format (``rle.py``).

Source:
    cocoapi's ``maskApi.c``, ``rleEncode`` and ``rleToString``: run lengths along columns, first the
    background's; from the fourth on as the difference to the one before the last; each in groups of
    five bits, lowest first, as characters from code 48 on, with 32 for "goes on".
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import numpy.typing as npt

from edgesam_core.arrays import Mask
from edgesam_core.runs import Integers

_GROUP_BITS = 5
_GOES_ON = 32
_SIGN = 16
"""The highest bit of a group: the last group's is the number's sign."""


class CocoRle(TypedDict):
    """A ``segmentation`` as it stands in a JSON file."""

    size: list[int]
    # [height, width]
    counts: str


def mask_to_coco_rle(mask: Mask) -> CocoRle:
    """The compressed run lengths of a mask [H, W] bool."""
    height, width = mask.shape
    by_column = mask.T.ravel()
    changes = np.flatnonzero(by_column[1:] != by_column[:-1]) + 1
    counts = np.diff(changes, prepend=0, append=by_column.size)
    if by_column.size and by_column[0]:
        counts = np.insert(counts, 0, 0)
    return {"size": [height, width], "counts": _compressed(counts).tobytes().decode("ascii")}


def _compressed(counts: Integers) -> npt.NDArray[np.uint8]:
    """The characters of run lengths."""
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    goes_on = np.ones(len(rest), np.bool_)
    groups: list[npt.NDArray[np.uint8]] = []
    is_used: list[npt.NDArray[np.bool_]] = []
    while goes_on.any():
        is_used.append(goes_on)
        group = rest & (1 << _GROUP_BITS) - 1
        rest = rest >> _GROUP_BITS
        goes_on = goes_on & (rest != np.where(group & _SIGN, -1, 0))
        groups.append((group + _GOES_ON * goes_on + 48).astype(np.uint8))
    return np.stack(groups, axis=1)[np.stack(is_used, axis=1)]
