"""Label Studio's drawn shapes as outlines: polygon, rectangle, ellipse and vector.

Each shape's ``value`` becomes one closed ring in pixels of the original, which
``edgesam_core/polygon.py`` paints. A shape that encloses nothing is a sentence. Masks that are
stored as pixels (brush, bitmask) are regions.py's.

The forms were read in the editor of label-studio 1.23.2: ``regions/EllipseRegion.jsx``,
``RectRegion.jsx``, ``PolygonRegion.jsx``, ``VectorRegion.jsx`` and
``components/KonvaVector/components/VectorShape.tsx``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesam_core.arrays import SizeHW
from edgesam_core.errors import PromptError
from edgesam_core.geometry import outline_percent_to_pixels, rectangle_percent_to_corners
from edgesam_core.polygon import Polygon

Value = Mapping[str, Any]
Vertex = Mapping[str, Any]

_ELLIPSE_POINTS = 720
"""A ring so fine leaves an ellipse of 4000 pixels' radius by less than a twentieth of a pixel."""

_CURVE_POINTS = 32
"""Of each curved piece of a vector."""

_BESIDE = 0.3
"""Where the editor sets the handle of a curve whose other end has none, as a share of the way."""

_MAX_ROWS = 20_000_000
"""Rows that an outline's edges cross, all together: what painting it costs in memory."""


def outline(shape: str, value: Value, size_hw: SizeHW) -> Polygon:
    """The ring around a drawn shape.

    Args:
        shape: A key of ``OUTLINES``.
        value: The region's ``value``, coordinates in percent.
        size_hw: (height, width) of the image in pixels.

    Returns:
        [N, 2] float64 (x, y), pixels of the original; parts of it may lie outside.

    Raises:
        PromptError: It encloses nothing, or its numbers cannot be read.
    """
    try:
        ring = OUTLINES[shape](value, size_hw)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
        raise PromptError(f"The {shape}'s numbers cannot be read. Draw the region again.") from exc
    if not np.isfinite(ring).all():
        raise PromptError(f"The {shape}'s numbers cannot be read. Draw the region again.")
    if len(ring) < 3:
        raise PromptError(f"The {shape} has fewer than three corners. Draw the region again.")
    y = np.clip(ring[:, 1], 0, size_hw[0])
    if np.abs(np.diff(y)).sum() > _MAX_ROWS:
        raise PromptError(f"The {shape} has too many corners. Draw the region again, simpler.")
    return ring


def _polygon(value: Value, size_hw: SizeHW) -> Polygon:
    if value.get("closed") is False:
        raise PromptError("The polygon was not closed. Close it, or delete it.")
    points = np.array(value["points"], np.float64).reshape(-1, 2)
    return outline_percent_to_pixels(points, size_hw)


def _rectangle(value: Value, size_hw: SizeHW) -> Polygon:
    x, y, width, height = (float(value[side]) for side in ("x", "y", "width", "height"))
    rotation = float(value.get("rotation") or 0)
    return rectangle_percent_to_corners(x, y, width, height, rotation, size_hw)


def _ellipse(value: Value, size_hw: SizeHW) -> Polygon:
    """Turns clockwise about its centre (x, y), in pixels."""
    names = ("x", "y", "radiusX", "radiusY")
    numbers = np.array([float(value[name]) for name in names]).reshape(2, 2)
    centre, radii = outline_percent_to_pixels(numbers, size_hw)
    turn = np.radians(float(value.get("rotation") or 0))
    around = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    x, y = radii[0] * np.cos(around), radii[1] * np.sin(around)
    turned = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)])
    ring: Polygon = centre + turned.T
    return ring


def _vector(value: Value, size_hw: SizeHW) -> Polygon:
    """Straight and curved pieces from each vertex to the one that follows it."""
    if value.get("closed") is not True:
        raise PromptError("The vector is an open line, which has no area. Close it, or delete it.")
    vertices = _in_order(value["vertices"])
    following = vertices[1:] + vertices[:1]
    pieces = [_piece(*pair) for pair in zip(vertices, following, strict=True)]
    return outline_percent_to_pixels(np.concatenate(pieces).reshape(-1, 2), size_hw)


def _in_order(vertices: list[Vertex]) -> list[Vertex]:
    """Vertices as the line goes: each names the one before it, or follows in the list.

    Raises:
        PromptError: The line branches or has several parts.
    """
    before: list[object] = []
    for index, vertex in enumerate(vertices):
        inherited = vertices[index - 1].get("id", index - 1) if index else None
        before.append(vertex.get("prevPointId") or inherited)
    ids = [vertex.get("id", index) for index, vertex in enumerate(vertices)]
    after = {previous: index for index, previous in enumerate(before) if previous in ids}
    start = next((i for i, previous in enumerate(before) if previous not in ids), 0)
    order = [start]
    while len(order) < len(vertices) and (next_one := after.get(ids[order[-1]])) is not None:
        order.append(next_one)
    if sorted(order) != list(range(len(vertices))):
        raise PromptError("The vector is no single closed line, so it has no area. Draw it again.")
    return [vertices[index] for index in order]


def _piece(start: Vertex, end: Vertex) -> Polygon:
    """[N, 2] in percent from a vertex to the next, whose own point is left out."""
    first, last = _point(start), _point(end)
    leaves, arrives = _handle(start, "controlPoint2"), _handle(end, "controlPoint1")
    if leaves is None and arrives is None:
        return first[None]
    if leaves is None:
        leaves = first + _BESIDE * (last - first)
    if arrives is None:
        arrives = last - _BESIDE * (last - first)
    t = np.linspace(0, 1, _CURVE_POINTS, endpoint=False)[:, None]
    curve: Polygon = (
        (1 - t) ** 3 * first
        + 3 * (1 - t) ** 2 * t * leaves
        + 3 * (1 - t) * t**2 * arrives
        + t**3 * last
    )
    return curve


def _handle(vertex: Vertex, name: str) -> Polygon | None:
    handle = vertex.get(name) if vertex.get("isBezier") else None
    return None if handle is None else _point(handle)


def _point(vertex: Vertex) -> Polygon:
    return np.array([vertex["x"], vertex["y"]], np.float64)


OUTLINES: dict[str, Callable[[Value, SizeHW], Polygon]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "ellipse": _ellipse,
    "vector": _vector,
}
"""The shapes that are drawn, by Label Studio's word without ``labels``."""
