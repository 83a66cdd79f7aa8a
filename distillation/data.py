"""Labelled photos as training crops: images and masks in memory, windows cut on the fly.

A crop is what the student sees: a square window of a photo, or the whole photo letter-boxed as in
serving, with a few of its masks. Masks are kept as COCO RLE and decoded only when drawn, so that
all of an openly licensed collection fits in memory.

Place: between the data folders and ``prompt_sampling.py``. Composed scenes come from
``distillation/synth``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from distillation import coco
from distillation.coco_masks import mask_to_coco_rle
from edgesam_core.arrays import SizeHW

RESERVED_SETS = frozenset({"dsb2018_nuclei", "seedling_plants"})
"""Never trained on: the unseen domains on which training on a project's own labels is shown."""

MIN_VISIBLE = 0.3
"""A mask of which less than this share lies in the window is not asked for."""


PADDING_RGB = (124, 116, 104)
"""The normalisation's mean colour: serving pads with zeros, after normalising."""


@dataclass(frozen=True)
class LabelledImage:
    """One photo and its instance masks, at the size in which it is kept in memory."""

    image: np.ndarray
    """[H, W, 3] uint8 RGB."""
    coco_rles: tuple[dict[str, Any], ...]
    boxes_xywh: np.ndarray
    """[K, 4] float32 pixels."""
    areas: np.ndarray
    """[K] float32 pixels."""


@dataclass(frozen=True)
class Crop:
    """A square training image and some of its masks."""

    image: np.ndarray
    """[S, S, 3] uint8 RGB; padding holds the normalisation's mean colour."""
    masks: np.ndarray
    """[K, S, S] uint8, 0 or 255; K may be 0."""
    valid: np.ndarray | None = None
    """[S, S] uint8, 255 where there is image, 0 where there is padding; None: all image."""


def load_set(folder: Path, *, max_side: int, validation: bool = False) -> list[LabelledImage]:
    """The training (or validation) half of one data set.

    Args:
        folder: Holds ``annotations.json`` (COCO or LVIS) and ``images/``; crowds are left out.
        max_side: Photos are kept at this long side at most, in pixels.
        validation: Images whose id is divisible by 10 instead of all others.

    Raises:
        RunError: Something is wrong with the annotations, an image or a mask, by file and reason.
    """
    annotated = coco.load_set(folder.name, folder / "annotations.json", folder / "images")
    findings = list(annotated.findings)
    loaded = []
    for image in annotated.images:
        kept = tuple(instance for instance in image.instances if not instance.is_crowd)
        if (image.image_id % 10 == 0) != validation or not kept:
            continue
        pixels, masks, found = coco.decode_image(replace(image, instances=kept))
        findings += found
        if pixels is not None and not found:
            loaded.append(_shrink(pixels, masks, max_side))
    coco.refuse(findings)
    return loaded


def _shrink(image: np.ndarray, masks: Sequence[np.ndarray], max_side: int) -> LabelledImage:
    scale = min(1.0, max_side / max(image.shape[:2]))
    if scale < 1.0:
        size_wh = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        large = [mask.astype(np.uint8) * 255 for mask in masks]
        small = [cv2.resize(mask, size_wh, interpolation=cv2.INTER_AREA) > 127 for mask in large]
        masks = [mask for mask in small if mask.any()]
        image = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
    rles = [mask_to_coco_rle(mask) for mask in masks]
    boxes = np.array([coco_mask.toBbox(rle) for rle in rles], np.float32).reshape(-1, 4)
    areas = np.array([coco_mask.area(rle) for rle in rles], np.float32)
    return LabelledImage(image, tuple(rles), boxes, areas)


def draw_crop(
    rng: np.random.Generator, labelled: LabelledImage, size: int, *, max_masks: int, min_area: float
) -> Crop:
    """A random window of a labelled photo.

    Two windows in five are the whole photo, letter-boxed as in serving; the others are zoomed on a
    random object, which fills between a thirtieth and most of the window.

    Args:
        rng: Source of all randomness.
        labelled: The photo.
        size: S, the side of the crop in pixels.
        max_masks: At most this many masks are decoded.
        min_area: Masks smaller than this share of the crop are left out.
    """
    x0, y0, side = _random_window(rng, labelled)
    scale = size / side
    flip = rng.random() < 0.5
    window = window_matrix(x0, y0, scale, size, flip=flip)

    share = _shares_inside(labelled.boxes_xywh, x0, y0, side)
    large_enough = labelled.areas * share * scale**2 >= min_area * size**2
    usable = np.flatnonzero((share >= MIN_VISIBLE) & large_enough)
    chosen = rng.permutation(usable)[:max_masks]

    shrink = cv2.INTER_AREA if scale < 0.6 else cv2.INTER_LINEAR
    image = jitter_colour(rng, labelled.image)
    image = warp(image, window, scale, size, shrink, border=PADDING_RGB)
    masks = [
        warp(coco_mask.decode(labelled.coco_rles[i]) * 255, window, scale, size, shrink, border=0)
        for i in chosen
    ]
    sharp = np.array([m > 127 for m in masks], bool).reshape(-1, size, size)
    floor = 0.5 * min_area * size**2
    sharp = sharp[sharp.sum(axis=(1, 2)) >= max(floor, 12)]
    everywhere = np.full(labelled.image.shape[:2], 255, np.uint8)
    valid = warp(everywhere, window, scale, size, shrink, border=0)
    return Crop(image, sharp.astype(np.uint8) * 255, valid)


def draw_oblong(rng: np.random.Generator, size: int) -> SizeHW:
    """Height and width of a photo that fills one side of an input of S pixels, 1:2 at most."""
    short = int(rng.integers(size // 2, size))
    return (short, size) if rng.random() < 0.7 else (size, short)


def cut(crop: Crop, shown_hw: SizeHW, min_area: float) -> Crop:
    """The upper left part of a crop; the rest becomes padding.

    Masks are left out of which too little remains, as in `draw_crop`.
    """
    outside = np.ones(crop.image.shape[:2], bool)
    outside[: shown_hw[0], : shown_hw[1]] = False
    image, masks = crop.image.copy(), crop.masks.copy()
    image[outside] = PADDING_RGB
    valid = np.full(outside.shape, 255, np.uint8) if crop.valid is None else crop.valid.copy()
    valid[outside] = 0
    masks[:, outside] = 0
    areas, before = np.count_nonzero(masks, (1, 2)), np.count_nonzero(crop.masks, (1, 2))
    kept = (areas >= MIN_VISIBLE * before) & (areas >= min_area * outside.size)
    return Crop(image, masks[kept], valid)


def _random_window(rng: np.random.Generator, labelled: LabelledImage) -> tuple[float, float, float]:
    """Left, upper edge and side of a square, in pixels of the photo; it may stick out."""
    long_side = max(labelled.image.shape[:2])
    if rng.random() < 0.4 or not len(labelled.areas):
        return 0.0, 0.0, float(long_side)
    x, y, w, h = labelled.boxes_xywh[rng.integers(len(labelled.areas))]
    zoom = np.exp(rng.uniform(np.log(1.15), np.log(5.0)))
    side = float(np.clip(max(w, h) * zoom, 48, 1.2 * long_side))
    slack_x, slack_y = max(side - w, 0.0), max(side - h, 0.0)
    x0 = x - rng.uniform(0.05, 0.95) * slack_x
    y0 = y - rng.uniform(0.05, 0.95) * slack_y
    return x0, y0, side


def _shares_inside(boxes_xywh: np.ndarray, x0: float, y0: float, side: float) -> np.ndarray:
    """How much of each box lies in a square window: [K, 4] -> [K], 0 to 1."""
    window = np.array([x0, y0, x0 + side, y0 + side], np.float32)
    corner, extent = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    seen = np.minimum(corner + extent, window[2:]) - np.maximum(corner, window[:2])
    return np.clip(seen, 0, None).prod(axis=1) / np.maximum(extent.prod(axis=1), 1)


def window_matrix(x0: float, y0: float, scale: float, size: int, *, flip: bool) -> np.ndarray:
    """The 2x3 matrix that takes a photo's pixels to the crop's."""
    matrix = np.array([[scale, 0, -x0 * scale], [0, scale, -y0 * scale]], np.float64)
    if flip:
        matrix[0] = [-scale, 0, size - 1 + x0 * scale]
    return matrix


def warp(
    array: np.ndarray,
    window: np.ndarray,
    scale: float,
    size: int,
    interpolation: int,
    border: int | tuple[int, int, int],
) -> np.ndarray:
    """Cut a window [size, size] out of a photo or mask; ``border`` is what lies outside."""
    if interpolation == cv2.INTER_AREA:  # warpAffine does not average: shrink first, then place
        array = cv2.resize(array, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        window = window.copy()
        window[:, :2] /= scale
    return cv2.warpAffine(array, window, (size, size), flags=cv2.INTER_LINEAR, borderValue=border)


def jitter_colour(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Brightness, contrast, colour cast, sometimes grey: [S, S, 3] uint8 -> the same."""
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    shift = rng.uniform(-20, 20) + 128 * (1 - gain)
    table = np.clip(np.arange(256)[:, None] * gain + shift, 0, 255).astype(np.uint8)
    out = cv2.LUT(image, table.reshape(256, 1, 3))
    if rng.random() < 0.1:
        out = np.repeat(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    return out
