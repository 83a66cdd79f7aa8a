from __future__ import annotations

import logging
import threading

import pytest

from backend.watch import Watch


def test_it_looks_again_and_again_in_one_thread_until_it_is_stopped() -> None:
    looks = threading.Semaphore(0)
    by: set[threading.Thread] = set()

    def look() -> None:
        by.add(threading.current_thread())
        looks.release()

    watch = Watch(look, every_s=0.001, name="guard")
    watch.start()
    watch.start()
    assert all(looks.acquire(timeout=20) for _ in range(5))
    assert [thread.name for thread in by] == ["guard"]
    watch.stop()
    assert not by.pop().is_alive()


def test_it_can_be_started_again() -> None:
    looked = threading.Event()
    watch = Watch(looked.set, every_s=60.0, name="guard")
    watch.stop()
    watch.start()
    assert looked.wait(20)
    watch.stop()  # within the minute that it would have waited
    looked.clear()
    watch.start()
    assert looked.wait(20)
    watch.stop()


def test_a_look_that_fails_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    looks: list[int] = []
    seen = threading.Event()

    def look() -> None:
        looks.append(1)
        if len(looks) == 1:
            raise RuntimeError("lost")
        seen.set()

    watch = Watch(look, every_s=0.001, name="guard")
    with caplog.at_level(logging.ERROR):
        watch.start()
        assert seen.wait(20)
        watch.stop()
    assert "guard: this look was broken off" in caplog.text
