"""One outline at a time onto a canvas, with the scene's own light, contrast and stock of photos.

``procedural.py`` decides what is painted where.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from distillation.synth.canvas import Canvas, Coverage, UInt8Array
from distillation.synth.outlines import Outline, rasterise
from distillation.synth.textures import (
    Colour,
    Rng,
    drawn_texture,
    lit,
    near_colour,
    photo_texture,
    random_colour,
    soft_shadow,
)


class Painter:
    """A canvas with its light and its stock of photos: paints one outline at a time."""

    def __init__(self, rng: Rng, size: int, photos: Sequence[UInt8Array]) -> None:
        """Lay the ground of a scene of ``size`` px and draw what its objects have in common."""
        self.rng, self.size, self.photos = rng, size, photos
        angle = rng.uniform(0, 2 * np.pi)
        self.light_xy = (float(np.cos(angle)), float(np.sin(angle)))
        self.has_relief = rng.random() < 0.6
        self.has_shadows = rng.random() < 0.5
        self.contrast = 0.15 if rng.random() < 0.75 else 0.7  # share of objects that hardly differ
        self.canvas = Canvas(self.texture(size, size, random_colour(rng), photo_share=0.55).copy())

    def texture(
        self, height: int, width: int, base: Colour, *, photo_share: float = 0.35
    ) -> UInt8Array:
        """Something to fill a window with, [height, width, 3]."""
        if self.photos and self.rng.random() < photo_share:
            return photo_texture(self.rng, height, width, self.photos, base)
        return drawn_texture(self.rng, height, width, base)

    def colour_on(self, cover: Coverage) -> Colour:
        """A colour for an object here; now and then close to what is below it."""
        if self.rng.random() >= self.contrast:
            return random_colour(self.rng)
        r, g, b, _ = cv2.mean(self.canvas.image[cover.window])
        return near_colour(self.rng, (r, g, b), self.rng.uniform(14, 35))

    def place(
        self, outline: Outline, xy: tuple[float, float], radius_px: float, **pose: float
    ) -> Coverage | None:
        """The outline in the frame, its edge as sharp or soft as chance will have it."""
        cover = rasterise(outline, self.size, centre_xy=xy, radius_px=radius_px, **pose)
        if cover is not None and self.rng.random() < 0.25:
            soft = cv2.blur(cover.alpha, (3, 3))
            cover = Coverage(soft, cover.x0, cover.y0)
        return cover

    def paint(
        self,
        cover: Coverage | None,
        *,
        colour: Colour | None = None,
        sheet: UInt8Array | None = None,
        parent: int = 0,
        inside: bool = False,
        is_flat: bool = False,
    ) -> int:
        """Fill and paint a coverage; 0 where there was nothing to paint.

        Equal things share the ``sheet`` they are cut from, where it is large enough. What lies
        inside its parent, or is flat, has neither relief nor shadow.
        """
        if cover is None or self.canvas.is_full:
            return 0
        rng = self.rng
        height, width = cover.alpha.shape
        if sheet is not None and height <= sheet.shape[0] and width <= sheet.shape[1]:
            rgb = sheet[:height, :width]
        else:
            rgb = self.texture(height, width, self.colour_on(cover) if colour is None else colour)
        is_body = not (inside or is_flat)
        if self.has_relief and is_body and rng.random() < 0.7:
            rgb = lit(rng, rgb, cover.alpha, self.light_xy)
        if self.has_shadows and is_body and rng.random() < 0.7:
            reach = min(max(0.15 * max(height, width), 1.5), 0.05 * self.size)
            shade, margin = soft_shadow(
                cover.alpha, blur_px=reach * 0.7, strength=rng.uniform(0.2, 0.6)
            )
            self.canvas.darken(
                shade,
                round(cover.x0 - margin - reach * self.light_xy[0]),
                round(cover.y0 - margin - reach * self.light_xy[1]),
            )
        return self.canvas.paint(cover, rgb, parent=parent, inside=inside)

    def somewhere(self) -> tuple[float, float]:
        """A point of the frame."""
        x, y = self.rng.uniform(0.05, 0.95, 2) * self.size
        return float(x), float(y)

    def radius(self, low: float, high: float) -> float:
        """Pixels; ``low`` and ``high`` are shares of the side, small ones as common as large."""
        return self.size * float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def pose(self) -> dict[str, float]:
        """Any turn, and an aspect of 0.3 to 1."""
        return {
            "aspect": float(self.rng.uniform(0.3, 1.0)),
            "angle": float(self.rng.uniform(0, 2 * np.pi)),
        }
