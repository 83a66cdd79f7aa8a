"""The only place where coordinate frames are converted.

Three frames, always (x, y) with (0, 0) in the corner of the image, not in the centre of its first
pixel:

- percent: 0..100 of the original width and height, Label Studio's unit;
- original: pixels of the original image after the EXIF rotation, `original_size_hw`;
- input: pixels of the encoder's S x S input, in which the image fills `input_size_hw`.

Nothing is rounded here. The half pixel that SAM adds to a click is added inside the decoder's
graph, to the input-frame coordinates of this file, so that exported graphs and PyTorch take the
same numbers. (SAM means pixel indices where we have corner-based coordinates, so a click lies half
an input pixel off its true place, as it does in the published predictor.)
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgesam_core.arrays import BoxXYXY, PointCoords, SizeHW
from edgesam_core.errors import PromptError

# Label Studio clips what is drawn to the image, then computes percents in floating point: a hair
# over 100 is the border. One thousandth of a percent is 0.04 px at 4000 px.
_PERCENT_SLACK = 1e-3


def percent_to_pixels(
    points_percent: npt.NDArray[np.float64], original_size_hw: SizeHW
) -> PointCoords:
    """Label Studio's percent coordinates as pixels of the original image.

    Args:
        points_percent: [N, 2] float64, (x, y), 0..100 of the original width and height.
        original_size_hw: (height, width) in pixels, after the EXIF rotation is applied.

    Returns:
        [N, 2] float32, (x, y), not rounded.

    Raises:
        PromptError: A coordinate is not a number or lies outside 0..100.
    """
    inside = (points_percent >= -_PERCENT_SLACK) & (points_percent <= 100 + _PERCENT_SLACK)
    if not np.all(inside):
        raise PromptError("A click lies outside the image. Click inside it and try again.")
    height, width = original_size_hw
    return (points_percent.clip(0, 100) * (width, height) / 100).astype(np.float32)


def pixels_to_percent(
    points: npt.NDArray[np.floating], original_size_hw: SizeHW
) -> npt.NDArray[np.float64]:
    """Pixels of the original image as Label Studio's percent coordinates.

    Args:
        points: [N, 2] (x, y), such as a polygon's vertices.
        original_size_hw: (height, width) in pixels.

    Returns:
        [N, 2] float64, 0..100 for points inside the image.
    """
    height, width = original_size_hw
    return np.asarray(points, dtype=np.float64) * 100 / (width, height)


def outline_percent_to_pixels(
    points_percent: npt.NDArray[np.float64], original_size_hw: SizeHW
) -> npt.NDArray[np.float64]:
    """As ``percent_to_pixels``, for the outline of a region, which may leave the image.

    Args:
        points_percent: [N, 2] (x, y).
        original_size_hw: (height, width) in pixels.

    Returns:
        [N, 2] (x, y) in original pixels, neither cut nor rounded.
    """
    height, width = original_size_hw
    return points_percent * (width, height) / 100


def rectangle_percent_to_box(
    x_percent: float,
    y_percent: float,
    width_percent: float,
    height_percent: float,
    rotation_degrees: float,
    original_size_hw: SizeHW,
) -> BoxXYXY:
    """Label Studio's rectangle as the upright box around it, cut at the image's border.

    A rotated rectangle turns clockwise about its own top-left corner (x, y), in pixels: in percents
    of a picture that is not square its sides would not stay at right angles. SAM knows upright
    boxes only, so the box is the smallest that holds all four corners.

    Args:
        x_percent: Left side, 0..100 of the original width.
        y_percent: Top side, 0..100 of the original height.
        width_percent: Of the original width, before the rotation.
        height_percent: Of the original height, before the rotation.
        rotation_degrees: Clockwise.
        original_size_hw: (height, width) in pixels.

    Returns:
        [4] float32: x0, y0, x1, y1 in original pixels.

    Raises:
        PromptError: A value is not a number, or nothing of the box lies inside the image.
    """
    corners = rectangle_percent_to_corners(
        x_percent, y_percent, width_percent, height_percent, rotation_degrees, original_size_hw
    )
    box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    return clip_box(box.astype(np.float32), original_size_hw)


def rectangle_percent_to_corners(
    x_percent: float,
    y_percent: float,
    width_percent: float,
    height_percent: float,
    rotation_degrees: float,
    original_size_hw: SizeHW,
) -> npt.NDArray[np.float64]:
    """The corners of Label Studio's rectangle, wherever they lie.

    Args:
        x_percent: See ``rectangle_percent_to_box``, also for the others.
        y_percent: Top side.
        width_percent: Before the rotation.
        height_percent: Before the rotation.
        rotation_degrees: Clockwise about (x, y).
        original_size_hw: (height, width) in pixels.

    Returns:
        [4, 2] (x, y) in original pixels, in order around it; NaN for what is no number.
    """
    height, width = original_size_hw
    x, w = x_percent * width / 100, width_percent * width / 100
    y, h = y_percent * height / 100, height_percent * height / 100
    angle = math.radians(rotation_degrees) if math.isfinite(rotation_degrees) else math.nan
    along = np.array([math.cos(angle), math.sin(angle)]) * w
    down = np.array([-math.sin(angle), math.cos(angle)]) * h
    corners: npt.NDArray[np.float64] = np.array([x, y]) + np.array(
        [0 * along, along, along + down, down]
    )
    return corners


def clip_box(box_xyxy: BoxXYXY, original_size_hw: SizeHW) -> BoxXYXY:
    """The part of a box that lies inside the image.

    Args:
        box_xyxy: [4] x0, y0, x1, y1 in original pixels, x0 < x1 and y0 < y1.
        original_size_hw: (height, width) in pixels.

    Returns:
        [4] float32, with an area.

    Raises:
        PromptError: A value is not a number, the box has no area, or it lies outside.
    """
    height, width = original_size_hw
    x0, y0, x1, y1 = box_xyxy
    if not (np.isfinite(box_xyxy).all() and x0 < x1 and y0 < y1):
        raise PromptError("A rectangle has no area. Draw it again, larger.")
    limit = np.array([width, height, width, height], dtype=np.float32)
    clipped: BoxXYXY = np.clip(box_xyxy, 0, limit)
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise PromptError("A rectangle lies outside the image. Draw it inside and try again.")
    return clipped


def box_to_percent(
    box_xyxy: tuple[float, float, float, float] | BoxXYXY, original_size_hw: SizeHW
) -> tuple[float, float, float, float]:
    """A box x0, y0, x1, y1 in original pixels as Label Studio's x, y, width, height in percent."""
    height, width = original_size_hw
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    return (
        x0 * 100 / width,
        y0 * 100 / height,
        (x1 - x0) * 100 / width,
        (y1 - y0) * 100 / height,
    )


def original_to_input(
    points: npt.NDArray[np.floating], original_size_hw: SizeHW, input_size_hw: SizeHW
) -> PointCoords:
    """Pixels of the original image as pixels of the encoder's input.

    Each axis has its own ratio, that of the rounded sizes, as in the published predictor.

    Args:
        points: [N, 2] (x, y) in original pixels; a box is its two corners, reshaped to [2, 2].
        original_size_hw: (height, width) of the original image.
        input_size_hw: (height, width) after resizing, without padding.

    Returns:
        [N, 2] float32, (x, y), before the half pixel that the decoder's graph adds.

    Source:
        ``ResizeLongestSide.apply_coords`` of Segment Anything.
    """
    height, width = original_size_hw
    input_height, input_width = input_size_hw
    ratio = np.array([input_width / width, input_height / height])
    scaled: npt.NDArray[np.float64] = np.asarray(points, dtype=np.float64) * ratio
    return scaled.astype(np.float32)


def input_to_original(
    points: npt.NDArray[np.floating], original_size_hw: SizeHW, input_size_hw: SizeHW
) -> PointCoords:
    """The inverse of `original_to_input`: [N, 2] (x, y) float32 in original pixels."""
    return original_to_input(points, input_size_hw, original_size_hw)


def check_points_inside(points: npt.NDArray[np.floating], original_size_hw: SizeHW) -> None:
    """Refuse clicks that are not on the image; its right and lower border still are.

    Args:
        points: [N, 2] (x, y) in original pixels.
        original_size_hw: (height, width) in pixels.

    Raises:
        PromptError: A coordinate is not a number or lies outside.
    """
    height, width = original_size_hw
    if not np.all((points >= 0) & (points <= (width, height))):
        raise PromptError("A click lies outside the image. Click inside it and try again.")
