from __future__ import annotations

from pathlib import Path

import pytest

from backend.directory_store import DirectoryStore
from backend.superseded import Clicks
from edgesam_core.errors import Superseded, Unavailable

PICTURE = (4, "image", None)
OTHER_PICTURE = (5, "image", None)


@pytest.fixture(params=["one process", "two processes"])
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Clicks, Clicks]:
    """What the older and the newer click reach."""
    if request.param == "one process":
        clicks = Clicks(at_most=2)
        return clicks, clicks
    older, newer = (DirectoryStore(tmp_path, 1024**2) for _ in range(2))
    return Clicks(at_most=2, shared=older), Clicks(at_most=2, shared=newer)


def is_superseded(
    processes: tuple[Clicks, Clicks],
    older: set[str],
    newer: set[str],
    *,
    newer_picture: tuple[object, ...] = PICTURE,
) -> bool:
    with (
        processes[0].answering(PICTURE, frozenset(older)) as first,
        processes[1].answering(newer_picture, frozenset(newer)) as second,
    ):
        with processes[1].turn(second):
            pass
        try:
            with processes[0].turn(first):
                return False
        except Superseded:
            return True


def test_a_click_is_superseded_by_one_with_all_its_prompts_and_more(
    processes: tuple[Clicks, Clicks],
) -> None:
    assert is_superseded(processes, {"a"}, {"a", "b"})


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        pytest.param({"a"}, {"b", "c"}, id="another annotator, or after the cross"),
        pytest.param({"a", "b"}, {"b", "c", "d"}, id="one prompt less"),
        pytest.param({"a", "b"}, {"a", "b"}, id="a prompt was moved"),
        pytest.param({"a", "b"}, {"a"}, id="fewer"),
        pytest.param(set(), {"a"}, id="without ids"),
    ],
)
def test_no_other_click_supersedes(
    processes: tuple[Clicks, Clicks], older: set[str], newer: set[str]
) -> None:
    assert not is_superseded(processes, older, newer)


def test_a_click_on_another_picture_supersedes_none(processes: tuple[Clicks, Clicks]) -> None:
    assert not is_superseded(processes, {"a"}, {"a", "b"}, newer_picture=OTHER_PICTURE)


def test_a_prompt_that_was_taken_back_is_answered_though_more_were_clicked_before(
    processes: tuple[Clicks, Clicks],
) -> None:
    with processes[0].answering(PICTURE, frozenset({"a", "b"})):
        pass
    with processes[1].answering(PICTURE, frozenset({"a"})) as later, processes[1].turn(later):
        pass


def test_word_from_another_machine_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Clicks(at_most=1, shared=DirectoryStore(tmp_path, 1024**2))
    monkeypatch.setattr("backend.newest_click.machine_id", lambda: "another")
    there = Clicks(at_most=1, shared=DirectoryStore(tmp_path, 1024**2))
    with here.answering(PICTURE, frozenset({"a"})) as older:
        with there.answering(PICTURE, frozenset({"a", "b"})):
            pass
        with here.turn(older):
            pass


def test_a_click_that_is_refused_supersedes_none_and_takes_no_place() -> None:
    clicks = Clicks(at_most=1)
    with clicks.answering(PICTURE, frozenset({"a"})) as first:
        for _ in range(2):
            refused = clicks.answering(PICTURE, frozenset({"a", "b"}))
            with pytest.raises(Unavailable, match="Too many clicks"), refused:
                pass
        first.check()
    with clicks.answering(PICTURE, frozenset({"a", "b"})):
        pass


def test_a_click_that_failed_makes_room() -> None:
    clicks = Clicks(at_most=1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), clicks.answering(PICTURE, frozenset()):
            raise ZeroDivisionError


def test_a_click_whose_turn_does_not_come_in_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.superseded.processors", lambda: 1)
    clicks = Clicks(at_most=2, wait_s=0.01)
    with (
        clicks.answering(PICTURE, frozenset({"a"})) as first,
        clicks.answering(OTHER_PICTURE, frozenset({"b"})) as second,
    ):
        with (
            clicks.turn(first),
            pytest.raises(Unavailable, match="other clicks are before it"),
            clicks.turn(second),
        ):
            pass
        with clicks.turn(second):
            pass


def test_a_click_that_is_superseded_while_it_waits_gives_its_turn_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("backend.superseded.processors", lambda: 1)
    clicks = Clicks(at_most=2)
    with (
        clicks.answering(PICTURE, frozenset({"a"})) as older,
        clicks.answering(PICTURE, frozenset({"a", "b"})) as newer,
    ):
        with pytest.raises(Superseded), clicks.turn(older):
            pytest.fail("decoded for nobody")
        with clicks.turn(newer):
            pass
