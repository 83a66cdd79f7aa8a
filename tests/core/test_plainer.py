from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesam_core.clean import remove_specks
from edgesam_core.plainer import make_plainer
from edgesam_core.rle import brush_rle_bytes, mask_to_brush_rle
from edgesam_core.upscale import upscale
from edgesam_core.windowed_mask import WindowedMask

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
SIZE_HW = (750, 1000)


def noise(size_hw):
    return np.random.default_rng(0).random(size_hw) < 0.5


def object_in_a_haze():
    """A disc, and around it specks over the floor of the cleaning."""
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    disc = np.hypot(y - 375, x - 500) < 200
    specks = np.random.default_rng(0).random((75, 100)) < 0.2
    return disc | specks.repeat(10, 0).repeat(10, 1), disc


def comb():
    full = np.zeros(SIZE_HW, np.bool_)
    full[100:700, 100:900:4] = True
    full[100:110, 100:900] = True
    return full


@given(MASKS)
def test_the_bytes_counted_are_those_written(mask):
    windowed = WindowedMask.from_full(mask)
    assert brush_rle_bytes(windowed) == len(mask_to_brush_rle(windowed))


@given(MASKS, st.integers(40, 400))
def test_the_rle_is_never_longer_than_allowed_but_with_one_run_in_every_row(mask, most):
    plain = make_plainer(WindowedMask.from_full(mask), max_rle_bytes=most, min_area_px=1)
    assert (plain.area > 0) == mask.any()
    runs_per_row = np.bincount(plain.runs.rows)
    assert brush_rle_bytes(plain) <= most or runs_per_row.max(initial=0) <= 1


@pytest.mark.parametrize(
    "full",
    [
        pytest.param(noise(SIZE_HW), id="noise"),
        pytest.param(comb(), id="a comb"),
        pytest.param(object_in_a_haze()[0], id="an object in a haze"),
        pytest.param(np.indices(SIZE_HW).sum(axis=0) // 8 % 2 == 1, id="diagonal stripes"),
    ],
)
def test_a_ragged_mask_is_made_plain_enough_and_stays_where_it_was(full):
    ragged = WindowedMask.from_full(full)
    assert brush_rle_bytes(ragged) > 10_000
    plain = make_plainer(ragged, max_rle_bytes=10_000, min_area_px=64)
    assert len(mask_to_brush_rle(plain)) <= 10_000
    assert (plain.full() & full).any()


def test_an_object_in_a_haze_loses_the_haze_and_keeps_its_outline():
    full, disc = object_in_a_haze()
    mask = remove_specks(WindowedMask.from_full(full), min_area_px=64)
    plain = make_plainer(mask, max_rle_bytes=10_000, min_area_px=64).full()
    assert (plain & disc).sum() / (plain | disc).sum() > 0.9


def test_a_mask_that_is_short_enough_is_returned_as_it_is():
    mask = WindowedMask.from_full(object_in_a_haze()[1])
    assert make_plainer(mask, max_rle_bytes=10_000, min_area_px=64) is mask


def test_the_noisiest_answer_for_twelve_megapixels_is_bounded():
    """A decoder whose logits are a chessboard, the worst that it can give."""
    logits = np.where(np.indices((256, 256)).sum(axis=0) % 2, 1, -1).astype(np.float32)
    ragged = upscale(
        logits, input_size=1024, input_size_hw=(768, 1024), original_size_hw=(3000, 4000)
    )
    assert brush_rle_bytes(ragged) > 1_500_000
    plain = make_plainer(ragged, max_rle_bytes=256 * 1024, min_area_px=64)
    assert plain.area > 0
    assert brush_rle_bytes(plain) <= 256 * 1024
