"""The worst answers as picture sheets, so that a person sees what the numbers average away.

The sheets show the images that were measured on; where those may not be published, neither may the
sheets.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from distillation.click_rounds import Turn
from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.decode import Prompt

TILE_PX = 240
TILES_PER_ROW = 6
CAPTION_PX = 20
HEAD_PX = 40
MISSED_COLOUR = (230, 159, 0)
SPILLED_COLOUR = (0, 114, 178)
TINT = 0.6
"""Share of the colour in what is missed or spilled; what is right keeps its own colours."""
BACKGROUND = (24, 24, 24)
FONT_PX = 12

Box = tuple[int, int, int, int]


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
        case = (-iou, self._offered, _tile(image, turn, truth, f"{100 * iou:.0f} %  {name}"))
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
            size = (TILES_PER_ROW * TILE_PX, HEAD_PX + rows * (TILE_PX + CAPTION_PX))
            sheet = Image.new("RGB", size, BACKGROUND)
            _draw_head(sheet, f"The {len(tiles)} worst: {column}")
            for index, tile in enumerate(tiles):
                row, place = divmod(index, TILES_PER_ROW)
                sheet.paste(tile, (place * TILE_PX, HEAD_PX + row * (TILE_PX + CAPTION_PX)))
            written.append(folder / f"worst_{column}.png")
            sheet.save(written[-1])
        return written


def _draw_head(sheet: Image.Image, title: str) -> None:
    """Title, and what the colours mean."""
    draw = ImageDraw.Draw(sheet)
    draw.text((8, HEAD_PX // 2), title, "white", ImageFont.load_default(16), anchor="lm")
    x = sheet.width - 470
    for text, colour in (
        ("annotated outline", None), ("missed", MISSED_COLOUR), ("spilled", SPILLED_COLOUR),
        ("click, +/-", None),
    ):  # fmt: skip
        if colour is not None:
            draw.rectangle((x, HEAD_PX // 2 - 6, x + 12, HEAD_PX // 2 + 6), fill=colour)
        elif text.startswith("click"):
            _draw_click(draw, x + 6, HEAD_PX / 2, is_positive=True)
        else:
            draw.rectangle((x, HEAD_PX // 2 - 6, x + 12, HEAD_PX // 2 + 6), outline="white")
        draw.text((x + 20, HEAD_PX // 2), text, "white", ImageFont.load_default(13), anchor="lm")
        x += 90 if colour else 150


def _tile(image: ImageRGB, turn: Turn, truth: Mask, caption: str) -> Image.Image:
    """The neighbourhood of the object: errors tinted, truth outlined white, prompt drawn."""
    window = _neighbourhood(truth)
    cut = np.s_[window[1] : window[3], window[0] : window[2]]
    picture = Image.fromarray(np.ascontiguousarray(image[cut]))
    size = (TILE_PX - 4, TILE_PX - 4)
    picture = ImageOps.contain(picture, size, Image.Resampling.LANCZOS)
    for wrong, colour in (
        (truth & ~turn.mask, MISSED_COLOUR), (turn.mask & ~truth, SPILLED_COLOUR),
    ):  # fmt: skip
        tinted = Image.blend(picture, Image.new("RGB", picture.size, colour), TINT)
        picture.paste(tinted, mask=_resized(wrong[cut], picture.size))
    inside = _resized(truth[cut], picture.size)
    picture.paste("black", mask=_band(inside, 5))
    picture.paste("white", mask=_band(inside, 3))
    scale = picture.width / (window[2] - window[0])
    _draw_prompt(ImageDraw.Draw(picture), turn.prompt, window[:2], scale)
    canvas = Image.new("RGB", (TILE_PX, TILE_PX + CAPTION_PX), BACKGROUND)
    canvas.paste(ImageOps.pad(picture, size, color=BACKGROUND), (2, 2))
    place = (5, TILE_PX + CAPTION_PX // 2 - 1)
    font = ImageFont.load_default(FONT_PX)
    ImageDraw.Draw(canvas).text(place, caption, "white", font, anchor="lm")
    return canvas


def _neighbourhood(truth: Mask) -> Box:
    """The object and half its size around it, within the image."""
    height, width = truth.shape
    x0, y0, x1, y1 = Image.fromarray(truth).getbbox() or (0, 0, width, height)
    margin = max(x1 - x0, y1 - y0, 24) // 2
    return (
        max(x0 - margin, 0),
        max(y0 - margin, 0),
        min(x1 + margin, width),
        min(y1 + margin, height),
    )


def _resized(mask: Mask, size_wh: tuple[int, int]) -> Image.Image:
    whole = Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255)
    return whole.resize(size_wh, Image.Resampling.BILINEAR).point(lambda level: 255 * (level > 127))


def _band(inside: Image.Image, width_px: int) -> Image.Image:
    """A line of an odd width along the edge of a shape."""
    grown = np.asarray(inside.filter(ImageFilter.MaxFilter(width_px)))
    return Image.fromarray(grown - np.asarray(inside.filter(ImageFilter.MinFilter(3))))


def _draw_prompt(
    draw: ImageDraw.ImageDraw, prompt: Prompt, corner_xy: tuple[int, int], scale: float
) -> None:
    """The box as a yellow frame, clicks as discs with plus or minus."""
    if prompt.box_xyxy is not None:
        corners = (prompt.box_xyxy.reshape(2, 2) - corner_xy) * scale
        draw.rectangle([tuple(corner) for corner in corners.tolist()], outline="#F0E442", width=2)
    for point, label in zip(prompt.point_coords, prompt.point_labels, strict=True):
        x, y = ((point - corner_xy) * scale).tolist()
        _draw_click(draw, x, y, is_positive=bool(label == 1))


def _draw_click(draw: ImageDraw.ImageDraw, x: float, y: float, *, is_positive: bool) -> None:
    draw.circle((x, y), 6, fill="white", outline="black")
    draw.line((x - 3, y, x + 3, y), fill="black", width=2)
    if is_positive:
        draw.line((x, y - 3, x, y + 3), fill="black", width=2)
