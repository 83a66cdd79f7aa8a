"""Drawn scenes: what is put where.

A scene is composed out of acts: scattered things, rows of equal ones, bodies with limbs, cells,
facades, wires, crooked regions. ``shapes.py`` has the outlines, ``painter.py`` puts one onto the
canvas, ``canvas.py`` keeps the masks, ``camera.py`` takes the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from distillation.synth.camera import through_camera
from distillation.synth.canvas import Coverage, Scene, UInt8Array
from distillation.synth.outlines import Outline
from distillation.synth.painter import Painter
from distillation.synth.shapes import (
    SIMPLE,
    SOLID,
    any_outline,
    branches,
    ellipse,
    fourier_blob,
    noise_blob,
    rectangle,
    stroke,
)
from distillation.synth.textures import Rng, clouds, near_colour, random_colour

LEAST_MASKS, MOST_MASKS = 3, 20


def _thing(painter: Painter) -> None:
    """One shape of any kind, sometimes with marks on it."""
    rng = painter.rng
    radius = painter.radius(0.05, 0.45)
    xy = painter.somewhere()
    whole = painter.paint(painter.place(any_outline(rng), xy, radius, **painter.pose()))
    if whole and radius > 0.08 * painter.size and rng.random() < 0.3:
        _marks(painter, whole, xy, radius)


def _marks(painter: Painter, whole: int, xy: tuple[float, float], radius: float) -> None:
    """Parts that lie inside a whole: eye, label, button, window."""
    rng = painter.rng
    for _ in range(int(rng.integers(1, 4))):
        at = rng.normal(xy, 0.35 * radius)
        kind = SOLID[int(rng.integers(len(SOLID)))]
        mark = painter.place(
            kind(rng), (at[0], at[1]), radius * rng.uniform(0.15, 0.5), **painter.pose()
        )
        painter.paint(mark, parent=whole, inside=True)


def _row(painter: Painter) -> None:
    """Equal small things in a row, a grid or a heap: the pattern's pieces are objects."""
    rng = painter.rng
    kind = any_outline(rng)
    colour = random_colour(rng)
    radius = painter.radius(0.025, 0.1)
    side = int(2.6 * radius) + 4
    sheet = painter.texture(side, side, colour)
    pose = painter.pose()
    columns, rows = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    step = radius * rng.uniform(1.7, 3.2)
    tilt, loose = rng.uniform(-0.5, 0.5), (0.0, 0.1, 0.6)[int(rng.integers(3))] * step
    origin = np.array(painter.somewhere())
    across = np.array([np.cos(tilt), np.sin(tilt)]) * step
    down = np.array([-across[1], across[0]])
    for row in range(rows):
        for column in range(columns):
            at = origin + across * (column - columns / 2) + down * (row - rows / 2)
            at = at + rng.normal(0, 1, 2) * loose
            if loose:
                pose = {**pose, "angle": float(rng.uniform(0, 2 * np.pi))}
            cover = painter.place(kind, (at[0], at[1]), radius, **pose)
            if rng.random() < 0.7:
                painter.paint(cover, sheet=sheet)
            else:
                painter.paint(cover, colour=near_colour(rng, colour, rng.uniform(10, 60)))


def _body(painter: Painter) -> None:
    """A body with limbs: 2 to 4 touching parts of which each is an object, and their union too."""
    rng, canvas = painter.rng, painter.canvas
    if canvas.is_full:
        return
    whole = canvas.group()
    xy, radius = painter.somewhere(), painter.radius(0.09, 0.32)
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


def _cells(painter: Painter) -> None:
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


def _facade(painter: Painter) -> None:
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
    side = int(2 * half.max()) + 4
    sheet = painter.texture(side, side, colour)
    for row in range(rows):
        for column in range(columns):
            grid = (2 * np.array([column, row]) + 1 - (columns, rows)) * half * 0.9
            at = turn @ grid + xy
            cover = painter.place(
                pane, (at[0], at[1]), half[0] * fill, aspect=half[1] / half[0], angle=angle
            )
            own = sheet if rng.random() < 0.8 else None
            part = painter.paint(cover, sheet=own, parent=board, inside=True)
            if part and rng.random() < 0.15:
                _marks(painter, part, (at[0], at[1]), float(half.min()) * fill)


def _wires(painter: Painter) -> None:
    """Thin curved strokes and twigs, often longer than the frame."""
    rng = painter.rng
    for _ in range(int(rng.integers(1, 4))):
        outline = branches(rng) if rng.random() < 0.35 else stroke(rng)
        thin = Outline(outline.rings, min(outline.width, 0.06))
        painter.paint(painter.place(thin, painter.somewhere(), painter.radius(0.15, 0.7)))


def _region(painter: Painter) -> None:
    """A large piece of the ground: floor, sky, table, road, hill."""
    rng, size = painter.rng, painter.size
    angle = rng.uniform(0, 2 * np.pi)
    radius = size * rng.uniform(0.5, 1.0)
    far = radius + size * rng.uniform(-0.15, 0.35)
    centre = (size / 2 + far * np.cos(angle), size / 2 + far * np.sin(angle))
    kind = (rectangle, fourier_blob, fourier_blob, ellipse)[int(rng.integers(4))]
    painter.paint(painter.place(kind(rng), centre, radius, angle=float(angle)))


def _mosaic(painter: Painter) -> None:
    """The whole ground in regions with crooked borders: fields, rocks, coats, a street."""
    rng, size, side = painter.rng, painter.size, 64
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    x = x + clouds(rng, side, side, cells=4, roughness=0.4) * np.float32(rng.uniform(0, 1e-3))
    y = y + clouds(rng, side, side, cells=4, roughness=0.4) * np.float32(rng.uniform(0, 1e-3))
    seeds = rng.random((int(rng.integers(3, 10)), 2), np.float32)
    stretch = np.float32(np.exp(rng.normal(0, 0.7)))
    squared = [(x - sx) ** 2 + stretch * (y - sy) ** 2 for sx, sy in seeds]
    nearest = np.argmin(squared, axis=0)
    for index in range(1, len(seeds)):  # the first one's cell stays ground
        cell = np.where(nearest == index, np.float32(255), np.float32(0))
        smooth = cv2.resize(cv2.GaussianBlur(cell, (5, 5), 1.0), (size, size))
        edge = np.float32(size / side / 2)  # steep enough for an edge of about two pixels
        alpha = np.minimum(np.maximum((smooth - 127.5) * edge + 127.5, 0), 255).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(alpha)
        if width and height:
            alpha = alpha[top : top + height, left : left + width]
            painter.paint(Coverage(np.ascontiguousarray(alpha), left, top), is_flat=True)


_ACTS: tuple[tuple[float, Callable[[Painter], None]], ...] = (
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
    painter = Painter(rng, size, photos)
    if rng.random() < 0.15:
        _mosaic(painter)
    while rng.random() < 0.35:
        _region(painter)
    for _ in range(int(rng.integers(2, 8))):
        if len(painter.canvas) < MOST_MASKS:
            chance = rng.random()
            next(act for upper, act in _ACTS if chance < upper)(painter)
    masks = painter.canvas.visible_masks()
    while len(masks) < LEAST_MASKS and not painter.canvas.is_full:
        _thing(painter)
        masks = painter.canvas.visible_masks()
    if len(masks) > MOST_MASKS:
        masks = masks[np.sort(rng.permutation(len(masks))[:MOST_MASKS])]
    return Scene(through_camera(rng, painter.canvas.image), masks)
