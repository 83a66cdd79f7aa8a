"""Mask to polygons for PolygonLabels, and back.

A polygon's corners lie on pixel edges: (0, 0) is the corner of the image, and the polygon of a
single pixel at column 3, row 5 runs through (3, 5) and (4, 6). Holes have no place in Label
Studio's polygons and are left out. Percent coordinates are made in ``geometry.py``.

Source:
    Simplification: Douglas and Peucker 1973, "Algorithms for the reduction of the number of points
    required to represent a digitized line or its caricature".
"""

from __future__ import annotations

import heapq
from typing import Annotated

import numpy as np
import numpy.typing as npt

from edgesam_core.arrays import Mask, SizeHW
from edgesam_core.runs import paint_toggles
from edgesam_core.windowed_mask import WindowedMask

Polygon = Annotated[npt.NDArray[np.float64], "[N, 2] (x, y) pixels of the original, N >= 3"]

MIN_VERTICES = 4
"""Every ring of pixels has four corners or more; with three, a small box would be half a box."""


def mask_to_polygons(
    mask: WindowedMask, *, tolerance_px: float, max_vertices: int
) -> list[Polygon]:
    """The outer ring of each island, simplified.

    Islands are 4-connected, as in ``clean.py``: two that meet at a corner are two polygons.

    Args:
        mask: Any mask; an empty one has no polygons.
        tolerance_px: How far the ring may leave the polygon, in pixels; 0 keeps every corner.
            Less than 1 keeps staircases.
        max_vertices: At most so many corners per polygon, at least 3. Where the tolerance would
            ask for more, those that matter most are taken.

    Returns:
        [N, 2] float64 each, (x, y) pixels of the original along pixel edges, not closed (the
        first point is not repeated); the polygon with the largest area inside its ring first.

    Raises:
        ValueError: The tolerance is negative or fewer than 3 vertices are allowed.
    """
    if not tolerance_px >= 0:
        raise ValueError(f"tolerance_px: expected 0 or more, got {tolerance_px}")
    if max_vertices < 3:
        raise ValueError(f"max_vertices: expected at least 3, got {max_vertices}")
    rings = sorted(_outer_rings(mask.window), key=_area, reverse=True)
    return [
        _simplify(ring, tolerance_px, max_vertices) + np.array([mask.x0, mask.y0], np.float64)
        for ring in rings
    ]


def polygon_to_mask(points: Polygon, size_hw: SizeHW) -> Mask:
    """The pixels whose centre lies in a polygon (even-odd rule).

    The exact inverse of an unsimplified ring. Pillow's ``ImageDraw.polygon`` draws the outline
    too: a square of 10 by 10 pixels comes out with 121.

    Args:
        points: [N, 2] (x, y) pixels of the original, finite; parts outside the image are cut off.
        size_hw: (height, width) in pixels.

    Returns:
        [H, W] bool.
    """
    height, width = size_hw
    (x_from, y_from), (x_to, y_to) = points.T, np.roll(points, -1, axis=0).T
    # Rows whose centre lies between an edge's ends; a horizontal edge has none.
    centre_rows = np.ceil(np.clip(np.stack([y_from, y_to]) - 0.5, 0, height)).astype(np.int64)
    first_row, last_row = centre_rows.min(axis=0), centre_rows.max(axis=0)
    row_counts = last_row - first_row
    edge = np.repeat(np.arange(len(points)), row_counts)
    index_in_edge = np.arange(len(edge)) - np.repeat(np.cumsum(row_counts) - row_counts, row_counts)
    row = first_row[edge] + index_in_edge

    along_edge = (row + 0.5 - y_from[edge]) / (y_to[edge] - y_from[edge])
    crossing = x_from[edge] + along_edge * (x_to[edge] - x_from[edge])
    column = np.ceil(np.clip(crossing - 0.5, 0, width)).astype(np.int64)
    return paint_toggles(np.sort(row * width + column), size_hw)


def _area(ring: Polygon) -> float:
    x, y = ring.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _outer_rings(window: Mask) -> list[Polygon]:
    """Every corner of each island's outer boundary, in order.

    Between two corners a boundary runs along a row or a column. The horizontal stretches are read
    off the pixels; sorted by column, their ends are the ends of the vertical stretches, two by two.
    A ring is followed by taking both partners in turn.
    """
    height, width = window.shape
    framed = np.zeros((height + 2, width), np.bool_)
    framed[1:-1] = window
    steps = np.flatnonzero(framed[:-1] != framed[1:])  # pixel edges between two rows
    is_above = framed.ravel()[steps]  # the inside is above the edge, not below
    is_begin = np.diff(steps, prepend=-1) != 1
    is_begin[1:] |= is_above[1:] != is_above[:-1]  # two pixels meet only at a corner
    is_begin |= steps % width == 0
    begins = np.flatnonzero(is_begin)
    ends = np.append(begins, len(steps))[1:] - 1

    # Corners 2 i and 2 i + 1 are the left and the right end of stretch i.
    y = np.repeat(steps[begins] // width, 2)
    x = np.stack([steps[begins] % width, steps[ends] % width + 1], axis=1).ravel()
    # Where two pixels meet only at a corner, two bends lie on one point; the one around the upper
    # pixel turns up and ends the vertical stretch from above.
    turns_down = np.repeat(~is_above[begins], 2)
    down_columns = np.lexsort((turns_down, y, x))
    vertical_partner = np.empty_like(down_columns)
    vertical_partner[down_columns[0::2]] = down_columns[1::2]
    vertical_partner[down_columns[1::2]] = down_columns[0::2]

    partner = vertical_partner.tolist()
    visited = bytearray(len(partner))
    rings = []
    # The first stretch of a ring, in reading order, is at its top: an outer ring has the inside
    # below it, the ring of a hole above.
    for top in range(0, len(partner), 2):
        if visited[top]:
            continue
        ring, here = [], top
        while not visited[here]:
            there = here ^ 1  # the stretch's other end
            visited[here] = visited[there] = True
            ring += [here, there]
            here = partner[there]
        if turns_down[top]:
            rings.append(np.stack([x[ring], y[ring]], axis=1).astype(np.float64))
    return rings


def _simplify(ring: Polygon, tolerance_px: float, max_vertices: int) -> Polygon:
    """Douglas-Peucker, the most needed corner first, so that it can stop at ``max_vertices``."""
    closed = np.concatenate([ring, ring[:1]])
    opposite = int(np.argmax(np.square(ring - ring[0]).sum(axis=1)))
    kept = [0, opposite]
    # (minus deviation, first, last, corner that deviates most) of each stretch not yet split
    stretches: list[tuple[float, int, int, int]] = []

    def push(first: int, last: int) -> None:
        if last - first > 1:
            deviation, corner = _farthest(closed, first, last)
            heapq.heappush(stretches, (-deviation, first, last, corner))

    push(0, opposite)
    push(opposite, len(ring))
    while stretches and len(kept) < max_vertices:
        negative_deviation, first, last, corner = heapq.heappop(stretches)
        if -negative_deviation <= tolerance_px and len(kept) >= MIN_VERTICES:
            break
        kept.append(corner)
        push(first, corner)
        push(corner, last)
    polygon: Polygon = ring[np.sort(kept)]
    return polygon


def _farthest(points: Polygon, first: int, last: int) -> tuple[float, int]:
    """The point between two others that is farthest from the line segment joining them."""
    chord = points[last] - points[first]
    offsets = points[first + 1 : last] - points[first]
    along = np.clip(offsets @ chord / max(float(chord @ chord), 1e-12), 0, 1)
    distances = np.hypot(*(offsets - along[:, None] * chord).T)
    farthest = int(np.argmax(distances))
    return float(distances[farthest]), first + 1 + farthest
