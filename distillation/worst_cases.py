"""The worst answers as picture sheets, so that a person sees what the numbers average away.

The sheets show the images that were measured on; where those may not be published, neither may the
sheets.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from distillation.click_rounds import Turn
from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.overlay import draw_overlay
from edgesam_core.windowed_mask import WindowedMask

TILE_PX = 240
TILES_PER_ROW = 6
TRUTH_COLOUR = (255, 255, 255)


class WorstCases:
    """Keeps the worst answers seen so far, a few per column."""

    def __init__(self, keep: int = 24) -> None:
        """Start with none.

        Args:
            keep: Answers per column.
        """
        self._keep = keep
        self._cases: dict[str, list[tuple[float, int, Image.Image]]] = defaultdict(list)
        self._offered = 0

    def offer(
        self, column: str, iou: float, image: ImageRGB, turn: Turn, truth: Mask, name: str
    ) -> None:
        """Show an answer; it is kept if it is among the worst of its column.

        Args:
            column: See ``metrics.COLUMNS``.
            iou: 0 to 1.
            image: [H, W, 3] uint8.
            turn: The prompt and the answer.
            truth: The annotated mask, [H, W] bool.
            name: Which object it is, for the caption.
        """
        cases = self._cases[column]
        self._offered += 1
        if len(cases) == self._keep and -cases[0][0] <= iou:
            return
        # A heap has its smallest first: with the sign turned, the best of the kept ones.
        case = (-iou, self._offered, _tile(image, turn, truth, f"{100 * iou:.0f} % {name}"))
        if len(cases) < self._keep:
            heapq.heappush(cases, case)
        else:
            heapq.heapreplace(cases, case)

    def save(self, folder: Path) -> list[Path]:
        """Write ``worst_<column>.png`` for every column, the worst first."""
        written = []
        for column, cases in self._cases.items():
            tiles = [tile for _, _, tile in sorted(cases, key=lambda case: -case[0])]
            rows = -(-len(tiles) // TILES_PER_ROW)
            sheet = Image.new("RGB", (TILES_PER_ROW * TILE_PX, rows * TILE_PX))
            for index, tile in enumerate(tiles):
                row, place = divmod(index, TILES_PER_ROW)
                sheet.paste(tile, (place * TILE_PX, row * TILE_PX))
            written.append(folder / f"worst_{column}.png")
            sheet.save(written[-1])
        return written


def _tile(image: ImageRGB, turn: Turn, truth: Mask, caption: str) -> Image.Image:
    """The neighbourhood of the object: answer tinted, truth outlined white, prompt drawn."""
    picture = draw_overlay(image, WindowedMask.from_full(turn.mask), turn.prompt)
    inside = Image.fromarray(truth.astype(np.uint8) * 255)
    x0, y0, x1, y1 = inside.getbbox() or (0, 0, *picture.size)
    margin = max(x1 - x0, y1 - y0, 24) // 2
    window = (
        max(x0 - margin, 0),
        max(y0 - margin, 0),
        min(x1 + margin, picture.width),
        min(y1 + margin, picture.height),
    )
    size = (TILE_PX - 2, TILE_PX - 16)
    tile = ImageOps.contain(picture.crop(window), size)
    shape = inside.crop(window).resize(tile.size)
    edge = np.asarray(shape.filter(ImageFilter.MaxFilter(3))) > np.asarray(shape)
    tile.paste(TRUTH_COLOUR, mask=Image.fromarray(edge))
    framed = ImageOps.pad(tile, size)
    canvas = Image.new("RGB", (TILE_PX, TILE_PX))
    canvas.paste(framed, (1, 1))
    ImageDraw.Draw(canvas).text((3, TILE_PX - 14), caption, fill="white")
    return canvas
