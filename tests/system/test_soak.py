"""Many annotators at once, for half a minute each; `make soak` goes on for longer."""

from __future__ import annotations

import numpy as np
import pytest

from bench.soak import Drawn, is_right, soak
from edgesam_core.rle import mask_to_brush_rle
from edgesam_core.windowed_mask import WindowedMask


@pytest.mark.slow
def test_many_annotators_on_one_process_are_all_answered_rightly() -> None:
    outcome = soak("alone", minutes=0.5, clicks=100)
    assert not outcome.wrongs
    assert outcome.superseded > 0


@pytest.mark.slow
@pytest.mark.redis
def test_many_annotators_on_two_processes_and_a_worker_are_all_answered_rightly() -> None:
    outcome = soak("crowd", minutes=0.5, clicks=100)
    assert not outcome.wrongs


def square(x: int, size_wh: tuple[int, int] = (64, 48)) -> list[int]:
    mask = np.zeros(size_wh[::-1], dtype=bool)
    mask[10:30, x : x + 20] = True
    return mask_to_brush_rle(WindowedMask.from_full(mask))


def test_the_soak_notices_the_mask_of_another_picture() -> None:
    drawn = Drawn("", (64, 48), ((50.0, 50.0),), ((square(10), square(11)),))
    assert is_right(drawn, 1, square(10))
    assert is_right(drawn, 1, square(12))  # the same object, not quite
    assert not is_right(drawn, 1, square(30))
    assert not is_right(drawn, 1, square(10, (80, 60)))
