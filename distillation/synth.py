"""Scenes with exact masks without end: drawn ones here, copy-paste ones in ``synth_paste.py``.

They teach the decoder where a box, an edge, a part and a whole are, before and between photos. This
file composes drawn scenes out of acts (scattered things, rows of equal ones, bodies with limbs,
cells, facades, wires); outlines come from ``synth_shapes.py``, what fills them from
``synth_textures.py``, occlusion from ``synth_canvas.py``, and ``synth_camera.py`` takes the picture.
NumPy and OpenCV only, a few milliseconds a scene; the same ``rng`` state gives the same scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from distillation.synth_camera import through_camera
from distillation.synth_canvas import Canvas, Coverage, Scene, UInt8Array
from distillation.synth_paste import Cutout, CutoutLibrary, load_cutouts, paste_scene
from distillation.synth_shapes import (
    SIMPLE,
    SOLID,
    Outline,
    any_outline,
    branches,
    ellipse,
    fourier_blob,
    noise_blob,
    rasterise,
    rectangle,
    stroke,
)
from distillation.synth_textures import (
    Colour,
    Rng,
    drawn_texture,
    lit,
    near_colour,
    photo_texture,
    random_colour,
    soft_shadow,
)

__all__ = ["Cutout", "CutoutLibrary", "Scene", "load_cutouts", "paste_scene", "procedural_scene"]

LEAST_MASKS, MOST_MASKS = 3, 20


class _Painter:
    """A canvas with its light and its stock of photos: paints one outline at a time."""

    def __init__(self, rng: Rng, size: int, photos: Sequence[UInt8Array]) -> None:
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
        below = np.array(cv2.mean(self.canvas.image[cover.window])[:3], np.float32)
        return near_colour(self.rng, below, self.rng.uniform(14, 35))

    def place(
        self, outline: Outline, xy: tuple[float, float], radius_px: float, **pose: float
    ) -> Coverage | None:
        """The outline in the frame, its edge as sharp or soft as chance will have it."""
        cover = rasterise(outline, self.size, centre_xy=xy, radius_px=radius_px, **pose)
        if cover is not None and self.rng.random() < 0.25:
            soft = cv2.GaussianBlur(cover.alpha, (0, 0), self.rng.uniform(0.5, 1.2))
            cover = Coverage(soft, cover.x0, cover.y0)
        return cover

    def paint(
        self,
        cover: Coverage | None,
        *,
        colour: Colour | None = None,
        parent: int = 0,
        inside: bool = False,
    ) -> int:
        """Fill and paint a coverage; 0 where there was nothing to paint."""
        if cover is None or self.canvas.is_full:
            return 0
        rng = self.rng
        rgb = self.texture(*cover.alpha.shape, self.colour_on(cover) if colour is None else colour)
        if self.has_relief and not inside and rng.random() < 0.7:
            rgb = lit(rng, rgb, cover.alpha, self.light_xy)
        if self.has_shadows and not inside and rng.random() < 0.7:
            reach = float(np.clip(0.15 * max(cover.alpha.shape), 1.5, 0.05 * self.size))
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


def _thing(painter: _Painter) -> None:
    """One shape of any kind, sometimes with marks on it."""
    rng = painter.rng
    radius = painter.radius(0.035, 0.3)
    xy = painter.somewhere()
    whole = painter.paint(painter.place(any_outline(rng), xy, radius, **painter.pose()))
    if whole and radius > 0.08 * painter.size and rng.random() < 0.3:
        _marks(painter, whole, xy, radius)


def _marks(painter: _Painter, whole: int, xy: tuple[float, float], radius: float) -> None:
    """Parts that lie inside a whole: eye, label, button, window."""
    rng = painter.rng
    for _ in range(int(rng.integers(1, 4))):
        at = rng.normal(xy, 0.35 * radius)
        kind = SOLID[int(rng.integers(len(SOLID)))]
        mark = painter.place(
            kind(rng), (at[0], at[1]), radius * rng.uniform(0.15, 0.5), **painter.pose()
        )
        painter.paint(mark, parent=whole, inside=True)


def _row(painter: _Painter) -> None:
    """Equal small things in a row, a grid or a heap: the pattern's pieces are objects."""
    rng = painter.rng
    kind = any_outline(rng)
    colour = random_colour(rng)
    radius = painter.radius(0.025, 0.08)
    pose = painter.pose()
    columns, rows = int(rng.integers(2, 6)), int(rng.integers(1, 5))
    step = radius * rng.uniform(1.7, 3.2)
    tilt, loose = rng.uniform(-0.5, 0.5), rng.choice([0.0, 0.1, 0.6]) * step
    origin = np.array(painter.somewhere())
    across = np.array([np.cos(tilt), np.sin(tilt)]) * step
    down = np.array([-across[1], across[0]])
    for row in range(rows):
        for column in range(columns):
            at = origin + across * (column - columns / 2) + down * (row - rows / 2)
            at = at + rng.normal(0, 1, 2) * loose
            if loose:
                pose = {**pose, "angle": float(rng.uniform(0, 2 * np.pi))}
            own = colour if rng.random() < 0.7 else near_colour(rng, colour, rng.uniform(10, 60))
            painter.paint(painter.place(kind, (at[0], at[1]), radius, **pose), colour=own)


def _body(painter: _Painter) -> None:
    """A body with limbs: 2 to 4 touching parts of which each is an object, and their union too."""
    rng, canvas = painter.rng, painter.canvas
    if canvas.is_full:
        return
    whole = canvas.group()
    xy, radius = painter.somewhere(), painter.radius(0.07, 0.22)
    colour = random_colour(rng)
    limbs = []
    for _ in range(int(rng.integers(1, 4))):
        angle = rng.uniform(0, 2 * np.pi)
        reach = radius * rng.uniform(0.7, 1.1)
        at = (xy[0] + reach * np.cos(angle), xy[1] + reach * np.sin(angle))
        limbs.append((at, radius * rng.uniform(0.3, 0.8), angle))
    split = int(rng.integers(len(limbs) + 1))  # those before it lie behind the body
    parts = [*limbs[:split], (xy, radius, rng.uniform(0, 2 * np.pi)), *limbs[split:]]
    for at, part_radius, angle in parts:
        kind = SOLID[int(rng.integers(len(SOLID)))]
        cover = painter.place(
            kind(rng), at, part_radius, aspect=float(rng.uniform(0.35, 1.0)), angle=float(angle)
        )
        own = near_colour(rng, colour, rng.uniform(5, 60)) if rng.random() < 0.6 else None
        painter.paint(cover, colour=own, parent=whole)


def _cells(painter: _Painter) -> None:
    """Soft bodies of one kind with a kernel each."""
    rng = painter.rng
    outer, inner = random_colour(rng), random_colour(rng)
    radius = painter.radius(0.05, 0.2)
    for _ in range(int(rng.integers(2, 7))):
        xy, own = painter.somewhere(), radius * rng.uniform(0.7, 1.3)
        kind = fourier_blob if rng.random() < 0.7 else ellipse
        cell = painter.paint(
            painter.place(kind(rng), xy, own, aspect=float(rng.uniform(0.6, 1.0))), colour=outer
        )
        if cell and rng.random() < 0.8:
            at = rng.normal(xy, 0.15 * own)
            kernel = fourier_blob(rng) if rng.random() < 0.6 else noise_blob(rng)
            cover = painter.place(kernel, (at[0], at[1]), own * rng.uniform(0.3, 0.65))
            painter.paint(cover, colour=inner, parent=cell, inside=True)


def _facade(painter: _Painter) -> None:
    """A board with a grid of panes, some of them divided again: facade, shelf, keyboard, rack."""
    rng = painter.rng
    radius = painter.radius(0.15, 0.4)
    xy, aspect = painter.somewhere(), float(rng.uniform(0.5, 1.0))
    angle = float(rng.normal(0, 0.15))
    board = painter.paint(painter.place(rectangle(rng), xy, radius, aspect=aspect, angle=angle))
    if not board:
        return
    columns, rows = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    pane, colour = SIMPLE[int(rng.integers(len(SIMPLE)))](rng), random_colour(rng)
    fill = rng.uniform(0.3, 0.8)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = radius * np.array([1 / columns, aspect / rows])
    for row in range(rows):
        for column in range(columns):
            grid = (2 * np.array([column, row]) + 1 - (columns, rows)) * half * 0.9
            at = turn @ grid + xy
            cover = painter.place(
                pane, (at[0], at[1]), half[0] * fill, aspect=half[1] / half[0], angle=angle
            )
            own = colour if rng.random() < 0.8 else None
            part = painter.paint(cover, colour=own, parent=board, inside=True)
            if part and rng.random() < 0.15:
                _marks(painter, part, (at[0], at[1]), float(half.min()) * fill)


def _wires(painter: _Painter) -> None:
    """Thin curved strokes and twigs, often longer than the frame."""
    rng = painter.rng
    for _ in range(int(rng.integers(1, 4))):
        outline = branches(rng) if rng.random() < 0.35 else stroke(rng)
        thin = Outline(outline.rings, min(outline.width, 0.06))
        painter.paint(painter.place(thin, painter.somewhere(), painter.radius(0.15, 0.7)))


def _region(painter: _Painter) -> None:
    """A large piece of the ground: floor, sky, table, road, hill."""
    rng, size = painter.rng, painter.size
    angle = rng.uniform(0, 2 * np.pi)
    radius = size * rng.uniform(0.5, 1.0)
    far = radius + size * rng.uniform(-0.15, 0.35)
    centre = (size / 2 + far * np.cos(angle), size / 2 + far * np.sin(angle))
    kind = (rectangle, fourier_blob, fourier_blob, ellipse)[int(rng.integers(4))]
    painter.paint(painter.place(kind(rng), centre, radius, angle=float(angle)))


_ACTS: tuple[tuple[float, Callable[[_Painter], None]], ...] = (
    (0.46, _thing), (0.6, _row), (0.78, _body), (0.85, _cells), (0.93, _facade), (1.0, _wires),
)  # fmt: skip
"""Acts with the upper end of their share of chance."""


def procedural_scene(rng: Rng, size: int, photos: Sequence[UInt8Array] = ()) -> Scene:
    """A drawn scene with 3 to 20 masks.

    Args:
        rng: Source of chance; the same state gives the same scene.
        size: Side of the square scene in pixels, at least 32.
        photos: [H, W, 3] uint8 RGB pictures to cut textures from: about half of the grounds and a
            third of the objects then look like real surfaces. None of them becomes an object.

    Returns:
        The scene; the order of masks is the order of painting, wholes before their parts.
    """
    painter = _Painter(rng, size, photos)
    while rng.random() < 0.4:
        _region(painter)
    for _ in range(int(rng.integers(2, 8))):
        chance = rng.random()
        next(act for upper, act in _ACTS if chance < upper)(painter)
    masks = painter.canvas.visible_masks()
    while len(masks) < LEAST_MASKS and not painter.canvas.is_full:
        _thing(painter)
        masks = painter.canvas.visible_masks()
    if len(masks) > MOST_MASKS:
        masks = masks[np.sort(rng.permutation(len(masks))[:MOST_MASKS])]
    return Scene(through_camera(rng, painter.canvas.image), masks)
