"""A sheet of sample answers: what the student says beside what it should have said.

The sheet shows training images; where those may not be published, neither may the sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.decode import Prompt
from edgesam_core.overlay import draw_overlay
from edgesam_core.windowed_mask import WindowedMask

TILE_PX, CAPTION_PX = 192, 14
TRUTH_COLOUR = (255, 255, 255)


@dataclass(frozen=True)
class Sample:
    """One prompt, its answer and the target."""

    image: ImageRGB
    """[S, S, 3] uint8."""
    prompt: Prompt
    """In pixels of the image."""
    mask: Mask
    """[S, S] bool, the student's."""
    target: Mask
    """[S, S] bool."""
    caption: str


def draw_sheet(samples: Sequence[Sample], *, columns: int = 4) -> ImageRGB | None:
    """Samples row by row: answer tinted, target outlined white, prompt drawn.

    Returns:
        [H, W, 3] uint8; None where there is no sample.
    """
    if not samples:
        return None
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * TILE_PX, rows * (TILE_PX + CAPTION_PX)))
    for index, sample in enumerate(samples):
        row, column = divmod(index, columns)
        x, y = column * TILE_PX, row * (TILE_PX + CAPTION_PX)
        sheet.paste(_tile(sample), (x, y))
        ImageDraw.Draw(sheet).text((x + 3, y + TILE_PX + 1), sample.caption, fill="white")
    return np.asarray(sheet)


def _tile(sample: Sample) -> Image.Image:
    picture = draw_overlay(sample.image, WindowedMask.from_full(sample.mask), sample.prompt)
    inside = Image.fromarray(sample.target.astype(np.uint8) * 255)
    edge = np.asarray(inside.filter(ImageFilter.MaxFilter(3))) > np.asarray(inside)
    picture.paste(TRUTH_COLOUR, mask=Image.fromarray(edge))
    return picture.resize((TILE_PX - 2, TILE_PX - 2))
