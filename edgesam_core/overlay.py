"""A picture of a suggestion: the mask tinted and outlined, the prompt drawn over it.

For people: the command line and the documentation. Not in a click's path.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from edgesam_core.arrays import ImageRGB
from edgesam_core.decode import Prompt
from edgesam_core.windowed_mask import WindowedMask

MASK_COLOUR = (30, 144, 255)
POSITIVE_COLOUR = (46, 204, 64)
NEGATIVE_COLOUR = (255, 65, 54)
BOX_COLOUR = (255, 220, 0)
_TINT = 0.45  # share of the mask's colour inside the mask


def draw_overlay(image: ImageRGB, mask: WindowedMask, prompt: Prompt) -> Image.Image:
    """The image with its mask, the outline, the clicks and the box.

    Args:
        image: [H, W, 3] uint8.
        mask: Of the same size.
        prompt: In original pixels; positive clicks green, negative ones red.

    Returns:
        An RGB picture of the same size; line widths grow with it.
    """
    picture = Image.fromarray(image)
    line_px = max(1, round(max(picture.size) / 400))
    inside = Image.fromarray(mask.full().astype(np.uint8) * 255)
    colour = Image.new("RGB", picture.size, MASK_COLOUR)
    picture = Image.composite(Image.blend(picture, colour, _TINT), picture, inside)
    picture.paste(MASK_COLOUR, mask=_outline(inside, line_px))

    draw = ImageDraw.Draw(picture)
    if prompt.box_xyxy is not None:
        draw.rectangle(prompt.box_xyxy.tolist(), outline=BOX_COLOUR, width=line_px)
    for (x, y), label in zip(
        prompt.point_coords.tolist(), prompt.point_labels.tolist(), strict=True
    ):
        fill = POSITIVE_COLOUR if label == 1 else NEGATIVE_COLOUR
        draw.circle((x, y), 3 * line_px, fill=fill, outline="white", width=line_px)
    return picture


def _outline(inside: Image.Image, line_px: int) -> Image.Image:
    """A band of ``line_px`` around the mask; only near the mask, since the filter is slow."""
    band = Image.new("L", inside.size)
    box = inside.getbbox()
    if box is not None:
        near = (box[0] - line_px, box[1] - line_px, box[2] + line_px, box[3] + line_px)
        part = inside.crop(near)
        grown = part.filter(ImageFilter.MaxFilter(2 * line_px + 1))
        band.paste(ImageChops.subtract(grown, part), near[:2])
    return band
