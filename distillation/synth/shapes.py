"""Outlines of every kind, from a circle to a twig.

An outline lives in a unit frame (roughly -1..1 in x and y) as closed rings, where a ring inside a
ring is a hole, or as open lines with a width. ``outlines.py`` places it in a scene; what fills it
is not decided here (``textures.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from distillation.synth.outlines import Outline, Ring

Rng = np.random.Generator
Floats = npt.NDArray[np.floating]


def _polar(radius: Floats | float, angle: Floats) -> Ring:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)


def _turn(count: int) -> Floats:
    """``count`` angles once around."""
    return np.arange(count) * (2 * np.pi / count)


def _rounded(ring: Ring, passes: int = 2) -> Ring:
    """Chaikin's corner cutting of a closed ring."""
    for _ in range(passes):
        following = np.roll(ring, -1, axis=0)
        ring = np.stack([0.75 * ring + 0.25 * following, 0.25 * ring + 0.75 * following], axis=1)
        ring = ring.reshape(-1, 2)
    return ring


def ellipse(rng: Rng) -> Outline:
    """A circle; the placement makes it an ellipse."""
    return Outline((_polar(1.0, _turn(48)),))


def superellipse(rng: Rng) -> Outline:
    """From a pinched diamond to a rounded box."""
    angle, exponent = _turn(48), rng.uniform(0.25, 1.6)
    x, y = np.cos(angle), np.sin(angle)
    ring = np.stack([np.sign(x) * np.abs(x) ** exponent, np.sign(y) * np.abs(y) ** exponent], 1)
    return Outline((ring.astype(np.float32),))


def rectangle(rng: Rng) -> Outline:
    """A box, a trapezium or a parallelogram, often with round corners."""
    top, lean = rng.uniform(0.5, 1.0) if rng.random() < 0.4 else 1.0, 0.0
    if rng.random() < 0.2:
        lean = rng.uniform(-0.4, 0.4)
    ring = np.array([[-1, 1], [-top + lean, -1], [top + lean, -1], [1, 1]], np.float32)
    return Outline((_rounded(ring, 3) if rng.random() < 0.25 else ring,))


def convex_polygon(rng: Rng) -> Outline:
    """3 to 8 corners on a circle."""
    corners = int(rng.integers(3, 9))
    ring = _polar(1.0, _turn(corners) + rng.uniform(-0.35, 0.35, corners))
    return Outline((_rounded(ring) if rng.random() < 0.3 else ring,))


def concave_polygon(rng: Rng) -> Outline:
    """5 to 14 corners at random distances, sharp or round."""
    corners = int(rng.integers(5, 15))
    ring = _polar(rng.uniform(0.35, 1.0, corners), _turn(corners))
    return Outline((_rounded(ring) if rng.random() < 0.6 else ring,))


def star(rng: Rng) -> Outline:
    """A star, a flower or a gear."""
    points = int(rng.integers(3, 12))
    inner = rng.uniform(0.3, 0.8)
    if rng.random() < 0.4:
        angle = _turn(points * 10)
        return Outline((_polar(inner + (1 - inner) * np.abs(np.cos(angle * points / 2)), angle),))
    if rng.random() < 0.3:
        return Outline((_polar(np.tile([1.0, 1.0, inner, inner], points), _turn(4 * points)),))
    return Outline((_polar(np.tile([1.0, inner], points), _turn(2 * points)),))


def crescent(rng: Rng) -> Outline:
    """A circle without a shifted smaller one."""
    half, inner = rng.uniform(1.0, 2.4), rng.uniform(0.2, 0.75)
    angle = np.linspace(-half, half, 32)
    outer = _polar(1.0, angle)
    back = outer[::-1].copy()
    back[:, 0] = outer[0, 0] + (back[:, 0] - outer[0, 0]) * inner
    return Outline((np.concatenate([outer, back]),))


def ring(rng: Rng) -> Outline:
    """A shape with one hole: tyre, frame, cup seen from above."""
    whole = SIMPLE[int(rng.integers(len(SIMPLE)))](rng).rings[0]
    shift = rng.uniform(-0.1, 0.1, 2).astype(np.float32)
    hole = (whole if rng.random() < 0.6 else ellipse(rng).rings[0] * np.float32(0.7)) * np.float32(
        rng.uniform(0.3, 0.8)
    )
    return Outline((whole, hole + shift))


def sector(rng: Rng) -> Outline:
    """A slice of cake, or all but one."""
    angle = np.linspace(0, rng.uniform(0.7, 5.6), 36)
    return Outline((np.concatenate([np.zeros((1, 2), np.float32), _polar(1.0, angle)]),))


def fourier_blob(rng: Rng) -> Outline:
    """A smooth random contour around its centre."""
    angle, order = _turn(72), np.arange(2, 8)
    size = rng.normal(0, 1, order.size) * rng.uniform(0.1, 0.5) / order**0.8
    phase = rng.uniform(0, 2 * np.pi, order.size)
    radius = np.exp(np.cos(np.outer(angle, order) + phase) @ size)
    return Outline((_polar(radius / radius.max(), angle),))


def noise_blob(rng: Rng) -> Outline:
    """The largest island of thresholded smooth noise, with its holes."""
    side, cells = 64, int(rng.integers(4, 8))
    field = cv2.resize(rng.random((cells, cells), np.float32), (side, side), interpolation=2)
    axis = np.linspace(-1, 1, side, dtype=np.float32) ** 2
    island = (field + 0.35 - 0.75 * (axis[:, None] + axis[None]) > 0.45).astype(np.uint8)
    contours, tree = cv2.findContours(island, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return fourier_blob(rng)
    largest = max(
        (index for index in range(len(contours)) if tree[0, index, 3] < 0),
        key=lambda index: len(contours[index]),
    )
    rings = [contours[largest]]
    rings += [c for c, links in zip(contours, tree[0], strict=True) if links[3] == largest]
    smooth = [_smoothed(c[:, 0].astype(np.float32)) for c in rings if len(c) >= 12]
    if not smooth:
        return fourier_blob(rng)
    low, high = smooth[0].min(axis=0), smooth[0].max(axis=0)
    return Outline(tuple((c - (low + high) / 2) / (max(high - low) / 2) for c in smooth))


def _smoothed(contour: Ring) -> Ring:
    """A closed pixel contour without its staircase: the mean of seven neighbours."""
    padded = np.concatenate([contour[-3:], contour, contour[:3]])
    total = np.cumsum(np.concatenate([np.zeros((1, 2), np.float32), padded]), axis=0)
    return ((total[7:] - total[:-7]) / 7).astype(np.float32)


def lathe(rng: Rng) -> Outline:
    """A mirrored profile: bottle, vase, lamp, chess piece."""
    knots = int(rng.integers(3, 7))
    half = np.interp(np.linspace(0, 1, 32), np.linspace(0, 1, knots), rng.uniform(0.15, 0.8, knots))
    if rng.random() < 0.7:
        half = np.convolve(np.pad(half, 3, mode="edge"), np.ones(7) / 7, mode="valid")
    y = np.linspace(-1, 1, 32)
    side = np.stack([half, y], axis=1)
    return Outline((np.concatenate([side, side[::-1] * (-1, 1)]).astype(np.float32),))


def leaf(rng: Rng) -> Outline:
    """A lens along a bent axis: leaf, fish, banana."""
    t = np.linspace(0, 1, 28)
    half = rng.uniform(0.12, 0.5) * np.sin(np.pi * t ** rng.uniform(0.5, 1.6)) ** 0.8
    axis = rng.uniform(-0.6, 0.6) * (1 - (2 * t - 1) ** 2)
    upper = np.stack([2 * t - 1, axis + half], axis=1)
    lower = np.stack([2 * t - 1, axis - half], axis=1)
    return Outline((np.concatenate([upper, lower[::-1]]).astype(np.float32),))


def sign(rng: Rng) -> Outline:
    """A cross, an L, a T, an arrow or a staircase of right angles."""
    a = float(rng.uniform(0.15, 0.6))
    shapes = (
        [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a),
         (-1, -a), (-a, -a)],
        [(-1, -1), (-1 + a, -1), (-1 + a, 1 - a), (1, 1 - a), (1, 1), (-1, 1)],
        [(-1, -1), (1, -1), (1, -1 + a), (a / 2, -1 + a), (a / 2, 1), (-a / 2, 1),
         (-a / 2, -1 + a), (-1, -1 + a)],
        [(-1, -a / 2), (0, -a / 2), (0, -0.8), (1, 0), (0, 0.8), (0, a / 2), (-1, a / 2)],
        [(-1, -1), (-a, -1), (-a, -a), (a, -a), (a, a), (1, a), (1, 1), (-1, 1)],
    )  # fmt: skip
    return Outline((np.array(shapes[int(rng.integers(len(shapes)))], np.float32),))


@lru_cache(maxsize=512)
def _letter_rings(character: str, font: int, thickness: int) -> tuple[Ring, ...]:
    paper = np.zeros((160, 160), np.uint8)
    cv2.putText(paper, character, (30, 120), font, 3.6, 255, thickness, cv2.LINE_AA)
    contours, _ = cv2.findContours(paper, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_smoothed(c[:, 0].astype(np.float32)) for c in contours if len(c) >= 12]
    points = np.concatenate(rings)
    low, high = points.min(axis=0), points.max(axis=0)
    return tuple((c - (low + high) / 2) / (max(high - low) / 2) for c in rings)


def letter(rng: Rng) -> Outline:
    """One letter or digit of OpenCV's stroke fonts, fat or slim."""
    character = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789&?"[int(rng.integers(35))]
    return Outline(_letter_rings(character, int(rng.integers(5)), 6 + 6 * int(rng.integers(4))))


def _walk(rng: Rng, steps: int, bend: float) -> Ring:
    """A line that turns smoothly, [steps, 2], starting at (0, 0) with length 1."""
    turns = np.cumsum(rng.normal(0, bend, steps)) / np.sqrt(steps) * 1.5
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turns) / np.sqrt(steps)
    return (np.cumsum(_polar(1.0, heading), axis=0) / steps).astype(np.float32)


def stroke(rng: Rng) -> Outline:
    """One curved line: wire, rope, worm, hose."""
    line = _walk(rng, 32, rng.uniform(0.2, 2.5))
    line -= (line.min(axis=0) + line.max(axis=0)) / 2
    line /= max(float(np.abs(line).max()), 0.3)
    return Outline((line,), width=float(np.exp(rng.uniform(np.log(0.02), np.log(0.35)))))


def branches(rng: Rng) -> Outline:
    """A stem with side branches: twig, crack, river, antler."""
    stem = stroke(rng).rings[0]
    lines = [stem]
    for _ in range(int(rng.integers(2, 7))):
        origin = lines[int(rng.integers(len(lines)))]
        start = origin[int(rng.integers(len(origin)))]
        lines.append(start + _walk(rng, 16, 1.0) * np.float32(rng.uniform(0.3, 0.9)))
    return Outline(tuple(lines), width=float(rng.uniform(0.02, 0.1)))


SIMPLE: tuple[Callable[[Rng], Outline], ...] = (ellipse, superellipse, rectangle, convex_polygon)
"""Plain shapes, without holes and deep bays."""

SOLID = (*SIMPLE, concave_polygon, fourier_blob, fourier_blob, noise_blob, lathe, lathe, leaf, leaf)
"""Shapes of bodies: what most things in photos look like from afar."""

ODD = (star, crescent, ring, ring, sector, sign, letter, stroke, stroke, branches)
"""Shapes that a box or an ellipse describes badly."""


def any_outline(rng: Rng) -> Outline:
    """A shape of any kind: six of ten are solid ones; some are bent by a wave."""
    kinds = SOLID if rng.random() < 0.6 else ODD
    outline = kinds[int(rng.integers(len(kinds)))](rng)
    if rng.random() < 0.4:
        size, per_unit, phase = rng.uniform(0, 0.25), rng.uniform(0.8, 3), rng.uniform(0, 6.3)
        wave = np.array([per_unit, 0], np.float32)
        rings = tuple(
            r + np.stack([np.zeros(len(r)), size * np.sin(r @ wave + phase)], 1).astype(np.float32)
            for r in map(_densified, outline.rings)
        )
        outline = Outline(rings, outline.width)
    return outline


def _densified(ring: Ring) -> Ring:
    """Straight edges of a ring with few corners cut into pieces, so that they can bend."""
    if len(ring) > 24:
        return ring
    share = np.arange(8, dtype=np.float32)[None, :, None] / 8
    pieces = ring[:, None] * (1 - share) + np.roll(ring, -1, axis=0)[:, None] * share
    return pieces.reshape(-1, 2).astype(np.float32)
