from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgesam_core.runs import paint_toggles, row_runs

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
