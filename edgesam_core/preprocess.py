"""An image becomes the encoder's input: resized, normalised, padded.

Third step of a click's path: [H, W, 3] uint8 -> [1, 3, S, S] float32. It does exactly what the
published predictor does (Pillow's antialiased bilinear on 8-bit pixels, rounding included): two
programs that disagree here disagree in every mask. Faster ways to shrink a large photo (a JPEG
decoded at half size, ``Image.reduce``) give other pixels and are therefore not used.

Nothing here reads files (image.py) or converts clicks (geometry.py).

Source:
    EdgeSAM (arXiv 2312.06660) as published, predictor and ``ResizeLongestSide``, both after Segment
    Anything (arXiv 2304.02643).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from edgesam_core.arrays import ImageRGB, InputImage, SizeHW, check_shape

VERSION = "1"
"""Part of every embedding's key: to be raised whenever one output value changes."""

# Per channel, RGB, on the 0..255 scale: ImageNet's statistics, as in SAM and EdgeSAM.
MEAN_RGB = np.array([123.675, 116.28, 103.53], dtype=np.float32)
STD_RGB = np.array([58.395, 57.12, 57.375], dtype=np.float32)


def resized_size_hw(original_size_hw: SizeHW, input_size: int) -> SizeHW:
    """The size of the image inside the encoder's input, before padding.

    Args:
        original_size_hw: (height, width) in pixels.
        input_size: S, the long side afterwards.

    Returns:
        (height, width); at least 1 pixel a side. The published code gives 0 for an aspect ratio
        above 2 S (3000 x 1), which no image library resizes to; we deviate there only.

    Source:
        ``ResizeLongestSide.get_preprocess_shape`` of Segment Anything.
    """
    scale = input_size / max(original_size_hw)
    height, width = (max(1, int(side * scale + 0.5)) for side in original_size_hw)
    return height, width


def resize(image: ImageRGB, input_size: int) -> ImageRGB:
    """The image with its long side at ``input_size``, smaller images enlarged.

    Args:
        image: [H, W, 3] uint8 RGB.
        input_size: S in pixels.

    Returns:
        [h, w, 3] uint8, by Pillow's antialiased bilinear filter.
    """
    height, width = resized_size_hw((image.shape[0], image.shape[1]), input_size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def normalise_and_pad(resized: ImageRGB, input_size: int) -> InputImage:
    """Levels to mean 0 and deviation 1, then zeros to the right and below.

    The zeros come after normalising: in the input they mean the average colour, not black.

    Args:
        resized: [h, w, 3] uint8, neither side longer than ``input_size``.
        input_size: S in pixels.

    Returns:
        [1, 3, S, S] float32.
    """
    height, width = resized.shape[:2]
    x = np.zeros((1, 3, input_size, input_size), dtype=np.float32)
    valid = x[0, :, :height, :width]  # a view: nothing is copied afterwards
    np.subtract(resized.transpose(2, 0, 1), MEAN_RGB[:, None, None], out=valid)
    np.divide(valid, STD_RGB[:, None, None], out=valid)
    return x


def preprocess(image: ImageRGB, input_size: int) -> tuple[InputImage, SizeHW]:
    """What the encoder takes for this image.

    Args:
        image: [H, W, 3] uint8 RGB, EXIF rotation applied.
        input_size: S, the side of the encoder's square input in pixels.

    Returns:
        [1, 3, S, S] float32, and the (height, width) of its part that is not padding.

    Raises:
        ValueError: The array has another shape or type.
    """
    check_shape(image, (None, None, 3), "image")
    if image.dtype != np.uint8:
        raise ValueError(f"image: expected uint8, got {image.dtype}")
    resized = resize(image, input_size)
    return normalise_and_pad(resized, input_size), (resized.shape[0], resized.shape[1])
