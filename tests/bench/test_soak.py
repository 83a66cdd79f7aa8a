from __future__ import annotations

import os
import time

import pytest

from bench.soak import Crowd, Outcome, memory_mb
from bench.soak_pictures import Drawn

NOWHERE = "http://127.0.0.1:1"
DRAWN = Drawn("http://images/0/soak.png", (64, 48), ((0.5, 0.5), (0.6, 0.5)))


def test_a_server_that_is_gone_ends_the_soak_and_is_named() -> None:
    outcome = Outcome("alone")
    with Crowd(NOWHERE, [DRAWN], outcome) as crowd:
        deadline = time.monotonic() + 60
        while not (outcome.is_hopeless and crowd.health_ms) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert crowd.is_complete
    assert outcome.is_hopeless
    assert set(outcome.errors) == {"ConnectionError", "health check: ConnectionError"}
    assert outcome.wrong_masks == 0


def test_a_mistake_of_the_annotators_own_ends_the_soak_and_is_not_hidden() -> None:
    def click_on_nothing() -> None:
        with Crowd(NOWHERE, [], Outcome("alone")) as crowd:
            while crowd.is_complete:
                time.sleep(0.01)

    with pytest.raises(IndexError):
        click_on_nothing()


def test_the_memory_of_a_process_that_is_gone_cannot_be_weighed() -> None:
    assert memory_mb([os.getpid()]) > 1
    with pytest.raises(OSError, match="/proc"):
        memory_mb([2**22 + 1])  # more than Linux ever gives
