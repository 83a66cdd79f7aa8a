from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgesam_core.runs import paint_toggles, row_runs, runs_between

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12))


@given(MASKS)
def test_a_mask_painted_from_its_runs_is_the_mask(mask):
    runs = row_runs(mask)
    assert np.array_equal(runs.paint(), mask)
    assert runs.lengths.sum() == mask.sum()


@given(MASKS)
def test_runs_are_maximal_and_in_reading_order(mask):
    runs = row_runs(mask)
    assert (runs.lengths >= 1).all()
    same_row = runs.rows[1:] == runs.rows[:-1]
    assert (same_row | (runs.rows[1:] > runs.rows[:-1])).all()
    assert (runs.starts[1:] > runs.stops[:-1])[same_row].all()


@given(MASKS, st.data())
def test_selected_runs_are_painted_and_no_others(mask, data):
    runs = row_runs(mask)
    keep = data.draw(hnp.arrays(np.bool_, len(runs.rows)))
    painted = runs.select(keep).paint()
    assert painted.sum() == runs.lengths[keep].sum()
    assert not (painted & ~mask).any()


def test_a_position_that_occurs_twice_changes_nothing():
    toggles = np.array([1, 3, 3, 5, 6, 6])
    assert paint_toggles(toggles, (2, 4)).ravel().tolist() == [False] + [True] * 4 + [False] * 3


@given(MASKS)
def test_the_complement_has_the_runs_of_the_other_pixels(mask):
    ours, expected = row_runs(mask).complement(), row_runs(~mask)
    for name in ("rows", "starts", "stops", "size_hw"):
        assert np.array_equal(getattr(ours, name), getattr(expected, name))


@given(MASKS, st.integers(0, 12))
def test_gaps_up_to_the_width_are_closed_and_no_others(mask, width_px):
    closed = row_runs(mask).close_gaps(width_px)
    painted = closed.paint()
    assert (painted | ~mask).all()
    added = row_runs(painted & ~mask)
    assert (added.lengths <= width_px).all()
    same_row = closed.rows[1:] == closed.rows[:-1]
    assert (closed.starts[1:] - closed.stops[:-1] > width_px)[same_row].all()


@given(MASKS, st.data())
def test_changes_in_any_order_are_runs_and_two_at_one_pixel_are_none(mask, data):
    runs = row_runs(mask)
    rows = np.concatenate([runs.rows, runs.rows])
    columns = np.concatenate([runs.starts, runs.stops])
    height, width = mask.shape
    if height:
        pixel = st.tuples(st.integers(0, height - 1), st.integers(0, width))
        for row, column in data.draw(st.lists(pixel, max_size=4)):
            rows, columns = np.append(rows, [row] * 2), np.append(columns, [column] * 2)
    order = np.array(data.draw(st.permutations(range(len(rows)))), np.int64)
    between = runs_between(rows[order], columns[order], mask.shape)
    for name in ("rows", "starts", "stops"):
        assert np.array_equal(getattr(between, name), getattr(runs, name))
