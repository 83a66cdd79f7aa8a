from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from edgesam_core.polygon import mask_to_polygons, polygon_to_mask
from edgesam_core.upscale import upscale
from edgesam_core.windowed_mask import WindowedMask

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def polygons_of(mask, *, tolerance_px=0.0, max_vertices=1000):
    return mask_to_polygons(
        WindowedMask.from_full(mask), tolerance_px=tolerance_px, max_vertices=max_vertices
    )


def union(polygons, size_hw):
    mask = np.zeros(size_hw, np.bool_)
    for polygon in polygons:
        mask |= polygon_to_mask(polygon, size_hw)
    return mask


def with_holes_filled(mask):
    """What cannot be reached from outside in steps along edges and corners is added."""
    outside = np.zeros(np.add(mask.shape, 2), np.bool_)
    outside[0, 0] = True
    free = ~np.pad(mask, 1)
    while True:
        padded = np.pad(outside, 1)
        height, width = outside.shape
        grown = free & np.logical_or.reduce(
            [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        )
        if np.array_equal(grown, outside):
            return ~outside[1:-1, 1:-1]
        outside = grown


def area(polygon):
    x, y = polygon.T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@given(MASKS)
def test_unsimplified_rings_are_the_mask_without_its_holes(mask):
    assert np.array_equal(union(polygons_of(mask), mask.shape), with_holes_filled(mask))


@given(MASKS, st.floats(0, 5), st.integers(3, 10))
def test_every_polygon_is_valid_whatever_the_mask(mask, tolerance_px, max_vertices):
    polygons = polygons_of(mask, tolerance_px=tolerance_px, max_vertices=max_vertices)
    assert bool(polygons) == bool(mask.any())
    for polygon in polygons:
        assert polygon.dtype == np.float64
        assert 3 <= len(polygon) <= max_vertices
        assert len(np.unique(polygon, axis=0)) == len(polygon)
        assert area(polygon) > 0
        assert (polygon >= 0).all()
        assert (polygon <= mask.shape[::-1]).all()


@settings(max_examples=30, deadline=None)
@given(
    centre=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    radius=st.floats(0.05, 0.4),
    waves=st.integers(1, 5),
    phase=st.floats(0, 7),
)
def test_a_smooth_shape_survives_as_a_polygon(centre, radius, waves, phase):
    y, x = np.mgrid[:64, :64] / 64
    angle, distance = (
        np.arctan2(y - centre[1], x - centre[0]),
        np.hypot(y - centre[1], x - centre[0]),
    )
    logits = radius * (1 + 0.2 * np.sin(waves * angle + phase)) - distance
    mask = upscale(
        logits.astype(np.float32),
        input_size=256,
        input_size_hw=(192, 256),
        original_size_hw=(600, 800),
    )
    polygons = mask_to_polygons(mask, tolerance_px=1.5, max_vertices=200)
    if mask.area >= 300:
        again, full = union(polygons, (600, 800)), mask.full()
        assert (again & full).sum() >= 0.93 * (again | full).sum()
        # The error lies along the edge, so it is the area over the circumference that counts.
        circumference = sum(
            np.hypot(*(polygon - np.roll(polygon, 1, axis=0)).T).sum() for polygon in polygons
        )
        assert (again ^ full).sum() <= circumference + 10
        assert len(polygons[0]) <= 80


def test_a_single_pixel_is_a_square_at_its_place():
    mask = np.zeros((9, 9), np.bool_)
    mask[5, 3] = True
    (polygon,) = polygons_of(mask, tolerance_px=2)
    assert sorted(map(tuple, polygon.tolist())) == [(3, 5), (3, 6), (4, 5), (4, 6)]


def test_the_largest_island_comes_first():
    mask = np.zeros((20, 30), np.bool_)
    mask[1:3, 1:3] = mask[5:15, 5:15] = mask[4:9, 20:25] = True
    assert [area(polygon) for polygon in polygons_of(mask)] == [100, 25, 4]


def test_a_hole_is_left_out():
    mask = np.ones((9, 9), np.bool_)
    mask[3:6, 3:6] = False
    (polygon,) = polygons_of(mask)
    assert area(polygon) == 81


def test_islands_that_meet_at_a_corner_are_two_polygons():
    mask = np.zeros((4, 4), np.bool_)
    mask[:2, :2] = mask[2:, 2:] = True
    assert [len(polygon) for polygon in polygons_of(mask)] == [4, 4]
    assert [len(polygon) for polygon in polygons_of(mask[::-1])] == [4, 4]


def test_the_tolerance_bounds_how_far_the_ring_leaves_the_polygon():
    y, x = np.mgrid[:300, :300]
    mask = np.hypot(y - 150, x - 150) < 120
    (ring,) = polygons_of(mask, max_vertices=10_000)
    (polygon,) = polygons_of(mask, tolerance_px=2)
    assert len(polygon) < 40 < len(ring)
    begin, chord = polygon, np.roll(polygon, -1, axis=0) - polygon
    offset = ring[:, None] - begin
    along = np.clip((offset * chord).sum(-1) / (chord * chord).sum(-1), 0, 1)
    distance = np.hypot(*np.moveaxis(offset - along[..., None] * chord, -1, 0)).min(axis=1)
    assert distance.max() <= 2


def test_a_cap_on_vertices_keeps_the_corners_that_matter_most():
    mask = np.zeros((200, 200), np.bool_)
    mask[20:180, 40:160] = True
    mask[100, 160:164] = True  # a small bump
    (polygon,) = polygons_of(mask, max_vertices=4)
    assert sorted(map(tuple, polygon.tolist())) == [(40, 20), (40, 180), (160, 20), (160, 180)]


@given(hnp.arrays(np.float64, (3, 2), elements=st.floats(-20, 40)))
def test_a_pixel_belongs_to_a_triangle_that_holds_its_centre(triangle):
    mask = polygon_to_mask(triangle, (16, 24))
    y, x = np.mgrid[:16, :24] + 0.5
    edges = np.roll(triangle, -1, axis=0) - triangle
    sides = np.stack(
        [dx * (y - y0) - dy * (x - x0) for (x0, y0), (dx, dy) in zip(triangle, edges, strict=True)]
    )
    inside = np.asarray((sides > 0).all(axis=0) | (sides < 0).all(axis=0))
    on_an_edge = (np.abs(sides) < 1e-6).any(axis=0)
    assert np.array_equal(mask[~on_an_edge], inside[~on_an_edge])


def test_a_square_has_as_many_pixels_as_its_area():
    square = np.array([[10.0, 10], [20, 10], [20, 20], [10, 20]])
    assert polygon_to_mask(square, (30, 30)).sum() == 100


def test_pillow_fills_the_same_shape_but_for_its_outline():
    star = np.array([[60, 5], [75, 45], [115, 50], [80, 70], [95, 110], [60, 85], [20, 110.5]])
    ours = polygon_to_mask(star, (120, 120))
    canvas = Image.new("1", (120, 120))
    ImageDraw.Draw(canvas).polygon([(x - 0.5, y - 0.5) for x, y in star.tolist()], fill=1)
    circumference = np.hypot(*(star - np.roll(star, 1, axis=0)).T).sum()
    assert (np.array(canvas) ^ ours).sum() < circumference / 2


@pytest.mark.parametrize(
    ("tolerance_px", "max_vertices"),
    [
        pytest.param(-1.0, 10, id="negative tolerance"),
        pytest.param(float("nan"), 10, id="tolerance is not a number"),
        pytest.param(1.0, 2, id="two vertices"),
    ],
)
def test_settings_without_meaning_are_refused(tolerance_px, max_vertices):
    with pytest.raises(ValueError, match="expected"):
        polygons_of(np.ones((3, 3), np.bool_), tolerance_px=tolerance_px, max_vertices=max_vertices)


def test_an_empty_mask_has_no_polygons():
    assert polygons_of(np.zeros((5, 5), np.bool_)) == []
