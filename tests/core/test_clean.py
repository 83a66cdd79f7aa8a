from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_core.clean import connected_components, remove_specks
from edgesam_core.runs import row_runs
from edgesam_core.windowed_mask import WindowedMask

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def flood(mask, *, diagonal):
    """All components of a small mask, each a set of (row, column), by flood fill."""
    neighbours = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if diagonal or 0 in (dy, dx)]
    todo = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    components = []
    while todo:
        component, front = set(), [todo.pop()]
        while front:
            y, x = front.pop()
            component.add((y, x))
            for dy, dx in neighbours:
                if (y + dy, x + dx) in todo:
                    todo.remove((y + dy, x + dx))
                    front.append((y + dy, x + dx))
        components.append(component)
    return components


def clean(mask, min_area_px):
    return remove_specks(WindowedMask.from_full(mask), min_area_px=min_area_px).full()


def picture(text):
    return np.array([[c == "#" for c in line] for line in text.split()])


@pytest.mark.parametrize("diagonal", [False, True], ids=["4-connected", "8-connected"])
@given(mask=MASKS)
def test_components_are_those_of_a_flood_fill(diagonal, mask):
    runs = row_runs(mask)
    label = connected_components(runs, diagonal=diagonal)
    found = {
        frozenset(map(tuple, np.argwhere(runs.select(label == one).paint()).tolist()))
        for one in set(label.tolist())
    }
    assert found == {frozenset(component) for component in flood(mask, diagonal=diagonal)}


@given(MASKS, st.integers(0, 20))
def test_nothing_below_the_floor_is_left_but_a_lone_island(mask, min_area_px):
    cleaned = clean(mask, min_area_px)
    islands = flood(cleaned, diagonal=False)
    assert len(islands) <= 1 or min(map(len, islands)) >= min_area_px
    framed = np.pad(cleaned, 1)
    for hole in flood(~framed, diagonal=True):
        inner = all(1 < y < framed.shape[0] - 2 and 1 < x < framed.shape[1] - 2 for y, x in hole)
        assert not inner or len(hole) >= min_area_px


@given(MASKS, st.integers(0, 20))
def test_the_largest_island_stays_and_no_mask_is_made_empty(mask, min_area_px):
    islands = flood(mask, diagonal=False)
    largest = max(map(len, islands), default=0)
    cleaned = clean(mask, min_area_px)
    survivors = [island for island in islands if all(cleaned[pixel] for pixel in island)]
    assert max(map(len, survivors), default=0) == largest


@given(MASKS, st.integers(0, 20))
def test_cleaning_twice_is_cleaning_once(mask, min_area_px):
    once = clean(mask, min_area_px)
    assert np.array_equal(clean(once, min_area_px), once)


def test_specks_and_pin_holes_go_and_the_rest_keeps_its_edge():
    before = picture("""
        ..........#.
        .######.....
        .##.###..##.
        .######..##.
        ............
    """)
    after = picture("""
        ............
        .######.....
        .######..##.
        .######..##.
        ............
    """)
    assert np.array_equal(clean(before, 4), after)


def test_specks_that_meet_only_at_corners_are_removed_one_by_one():
    diagonal = np.eye(20, dtype=np.bool_)
    diagonal[:5, 10:15] = True
    cleaned = clean(diagonal, 4)
    assert cleaned.sum() == 25


def test_a_notch_at_the_edge_of_the_image_is_no_hole():
    mask = np.ones((10, 10), np.bool_)
    mask[0, 4] = mask[9, 9] = False
    assert np.array_equal(clean(mask, 50), mask)


def test_a_hole_counts_without_the_specks_in_it():
    mask = np.ones((20, 20), np.bool_)
    mask[5:10, 5:10] = False  # 25 pixels
    mask[7, 7] = True
    cleaned = clean(mask, 25)
    assert not cleaned[5:10, 5:10].any()


def test_a_clean_mask_comes_back_as_it_is():
    mask = WindowedMask.from_window(np.ones((30, 30), np.bool_), 5, 6, (100, 100))
    assert remove_specks(mask, min_area_px=64) is mask
    empty = WindowedMask.empty((5, 5))
    assert remove_specks(empty, min_area_px=64) is empty


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_components_of_larger_noise_agree_with_scipy(seed, density):
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy counts the components")
    mask = np.random.default_rng(seed).random((200, 300)) < density
    for diagonal, structure in ((False, None), (True, np.ones((3, 3)))):
        label = connected_components(row_runs(mask), diagonal=diagonal)
        assert len(set(label.tolist())) == ndimage.label(mask, structure)[1]


def test_a_spiral_is_one_component():
    """The worst case for joining: long detours between neighbouring rows."""
    side = 401
    mask = np.zeros((side, side), np.bool_)
    for inset in range(0, side // 2, 2):
        mask[inset, inset : side - inset] = mask[side - 1 - inset, inset : side - inset] = True
        mask[inset : side - inset, inset] = mask[inset : side - inset, side - 1 - inset] = True
        mask[inset + 1, inset] = False
        mask[inset + 2, inset : inset + 2] = True
    label = connected_components(row_runs(mask), diagonal=False)
    assert len(set(label.tolist())) == len(flood(mask, diagonal=False))
