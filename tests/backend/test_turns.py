from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backend.machine_turns import MachineTurns
from backend.turns import Turns
from tests.parts import REPOSITORY

_HOLDER = """
import sys
from pathlib import Path
from backend.machine_turns import MachineTurns
assert MachineTurns(Path(sys.argv[1]), int(sys.argv[2])).take_now()
print("holds", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process_encodes(folder: Path, at_once: int = 1) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _HOLDER, str(folder), str(at_once)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def test_one_process_of_a_machine_encodes_at_a_time(tmp_path: Path) -> None:
    turns = Turns(1, MachineTurns(tmp_path, 1))
    with another_process_encodes(tmp_path):
        assert not turns.take(0.05)
        assert not turns.take_while_idle(0.05)
    assert turns.take(20)
    turns.give_back()
    assert turns.take_while_idle(20)


def test_a_process_that_is_killed_while_it_encodes_blocks_nobody(tmp_path: Path) -> None:
    turns = Turns(1, MachineTurns(tmp_path, 1))
    with another_process_encodes(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        assert turns.take(20)


def test_as_many_encode_at_once_as_there_is_room_for(tmp_path: Path) -> None:
    turns = Turns(2, MachineTurns(tmp_path, 2))
    with another_process_encodes(tmp_path, 2):
        assert turns.take(0)
        assert not turns.take(0.05)
        turns.give_back()
        assert turns.take(0)
        turns.give_back()


def test_a_click_that_got_no_turn_of_the_machine_blocks_no_other_here(tmp_path: Path) -> None:
    machine = MachineTurns(tmp_path, 1)
    turns = Turns(1, machine)
    with another_process_encodes(tmp_path):
        assert not turns.take(0.02)
    for _ in range(2):
        assert turns.take(20)
        turns.give_back()


def test_without_a_folder_that_can_be_locked_a_process_encodes_by_its_own_turns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    turns = Turns(1, MachineTurns(tmp_path / "file" / "folder", 1))
    for _ in range(2):
        assert turns.take(0)
        assert not turns.take(0.02)
        turns.give_back()
    assert caplog.text.count("EDGESAM_CACHE_DIR") == 1
