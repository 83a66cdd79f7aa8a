"""What a model has to beat: the box, the ellipse in it, and OpenCV's GrabCut.

None of them has learned anything. The ellipse is a strong opponent: a model that has only learned
"roughly the box" loses to it.

Paper: GrabCut, Rother, Kolmogorov and Blake, SIGGRAPH 2004.
"""

from __future__ import annotations

import cv2
import numpy as np

from edgesam_core.arrays import BoxXYXY, ImageRGB, Mask, SizeHW

GRABCUT_ITERATIONS = 5
SURE_RADIUS = 0.02
"""Radius of the disc around a click that is foreground for certain, as a share of the long side."""
PROBABLE_RADIUS = 0.25
"""Radius of the disc that is probably foreground; the rest is probably background."""


def box_mask(box_xyxy: BoxXYXY, original_size_hw: SizeHW) -> Mask:
    """All pixels of a box, [H, W] bool; edges rounded outward to whole pixels."""
    mask = np.zeros(original_size_hw, np.bool_)
    x, y, width, height = _whole_pixels(box_xyxy, original_size_hw)
    mask[y : y + height, x : x + width] = True
    return mask


def ellipse_mask(box_xyxy: BoxXYXY, original_size_hw: SizeHW) -> Mask:
    """The pixels whose centre lies in the ellipse inscribed in a box, [H, W] bool."""
    x0, y0, x1, y1 = (float(edge) for edge in box_xyxy)
    rows, columns = np.ogrid[: original_size_hw[0], : original_size_hw[1]]
    across = (columns + 0.5 - (x0 + x1) / 2) / max((x1 - x0) / 2, 0.5)
    down = (rows + 0.5 - (y0 + y1) / 2) / max((y1 - y0) / 2, 0.5)
    mask: Mask = across**2 + down**2 <= 1
    return mask


def grabcut_from_box(image: ImageRGB, box_xyxy: BoxXYXY) -> Mask:
    """GrabCut with everything outside the box as sure background, [H, W] bool.

    The box itself where GrabCut fails (a box that leaves no background) or comes back empty.
    """
    size_hw = (image.shape[0], image.shape[1])
    labels = np.zeros(size_hw, np.uint8)
    box_xywh = _whole_pixels(box_xyxy, size_hw)
    mask = _grabcut(image, labels, box_xywh, cv2.GC_INIT_WITH_RECT)
    return box_mask(box_xyxy, size_hw) if mask is None or not mask.any() else mask


def grabcut_from_click(image: ImageRGB, point_xy: tuple[float, float]) -> Mask:
    """GrabCut from discs around a click, [H, W] bool.

    The sure disc alone where GrabCut fails: the whole image was probably foreground.
    """
    size_hw = (image.shape[0], image.shape[1])
    labels = np.full(size_hw, cv2.GC_PR_BGD, np.uint8)
    centre = (int(point_xy[0]), int(point_xy[1]))
    for radius, label in ((PROBABLE_RADIUS, cv2.GC_PR_FGD), (SURE_RADIUS, cv2.GC_FGD)):
        cv2.circle(labels, centre, max(round(radius * max(size_hw)), 1), int(label), thickness=-1)
    sure: Mask = labels == cv2.GC_FGD
    mask = _grabcut(image, labels, None, cv2.GC_INIT_WITH_MASK)
    return sure if mask is None else mask


def _grabcut(
    image: ImageRGB, labels: np.ndarray, box_xywh: tuple[int, int, int, int] | None, mode: int
) -> Mask | None:
    """Foreground after five iterations, None where OpenCV refuses; ``labels`` is changed."""
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(image, labels, box_xywh, background, foreground, GRABCUT_ITERATIONS, mode)
    except cv2.error:
        return None
    mask: Mask = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return mask


def _whole_pixels(box_xyxy: BoxXYXY, original_size_hw: SizeHW) -> tuple[int, int, int, int]:
    """The box as x, y, width, height in whole pixels of the image, at least one of them."""
    height, width = original_size_hw
    x0, y0 = (int(edge) for edge in np.clip(np.floor(box_xyxy[:2]), 0, (width - 1, height - 1)))
    x1, y1 = (
        int(edge) for edge in np.clip(np.ceil(box_xyxy[2:]), (x0 + 1, y0 + 1), (width, height))
    )
    return x0, y0, x1 - x0, y1 - y0
