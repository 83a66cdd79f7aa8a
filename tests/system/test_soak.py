"""Many annotators at once, for half a minute each; `make soak` goes on for longer."""

from __future__ import annotations

import pytest

from bench.soak import soak


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
