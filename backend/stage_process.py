"""One stage of a training run as a child process: watched, paused for clicks, never left behind.

The child leads a process group of its own, so that what it starts is stopped and ended with it. It
dies with its watcher (Linux), and inherits the run's lock: nobody begins the stage again while it
still lives. What it writes goes into the run's folder; its last line on stderr is the reason where
it fails.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from edgesam_core.errors import EdgeSamError, RunError

_POLL_S = 0.1
_TAIL_BYTES = 16_384
_PR_SET_PDEATHSIG = 1
_REPOSITORY = Path(__file__).resolve().parents[1]

_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=1000000000:glibc.malloc.top_pad=67108864"
)
"""Large arrays on huge pages, and memory kept for the next one: the Makefile says what it brings,
and sets the same for `make train`. An older glibc, or another C library, passes it over."""

if sys.platform == "linux":
    _LIBC: ctypes.CDLL | None = ctypes.CDLL(None)
else:
    _LIBC = None


class Cancelled(EdgeSamError):
    """Somebody wants the run to end; inside the trainer only."""


class Killed(EdgeSamError):
    """The process of a stage was killed by somebody else; inside the trainer only."""


def run_stage(
    command: Sequence[str],
    log: Path,
    *,
    lock: int,
    is_cancelled: Callable[[], bool],
    has_to_wait: Callable[[], bool],
) -> float:
    """Run a program to its end.

    Args:
        command: The program and its arguments.
        log: Receives what it writes on stderr; a file ``.out`` beside it, the rest. Appended to.
        lock: Descriptor that it inherits.
        is_cancelled: Whether it should be ended.
        has_to_wait: Whether it should stand still now.

    Returns:
        The seconds for which it stood still.

    Raises:
        Cancelled: It was ended because somebody wants so.
        Killed: Somebody else ended it.
        RunError: It could not be started, or failed; the sentence is its last line on stderr.
    """
    child, begin = _start(command, log, lock)
    try:
        paused_s = _watch(child, is_cancelled, has_to_wait)
    finally:
        _end(child)
    if child.returncode < 0:
        raise Killed(detail=f"signal {-child.returncode}")
    if child.returncode:
        raise RunError(_reason(log, begin), detail=f"exit status {child.returncode}")
    return paused_s


def _start(command: Sequence[str], log: Path, lock: int) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and where in the log its lines begin.

    Raises:
        RunError: There is no such program, or no room for its log.
    """
    try:
        with log.open("ab") as errors, log.with_suffix(".out").open("ab") as output:
            begin = errors.tell()
            child = subprocess.Popen(
                command,
                cwd=_REPOSITORY,
                env={"GLIBC_TUNABLES": _TUNABLES, **os.environ},  # noqa: TID251 - handed on, not read
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                pass_fds=(lock,),
                process_group=0,
                preexec_fn=_dies_with_parent(os.getpid()),
            )
    except OSError as exc:
        raise RunError(
            f"The program of this stage could not be started ({exc.strerror}). Make room on the "
            "disk, or run make setup-train where the training runs, and start again.",
            detail=str(exc),
        ) from exc
    return child, begin


def _watch(
    child: subprocess.Popen[bytes],
    is_cancelled: Callable[[], bool],
    has_to_wait: Callable[[], bool],
) -> float:
    """Wait for the end of a process; the seconds for which it was stopped."""
    paused_s, stopped_at = 0.0, None
    while True:
        with suppress(subprocess.TimeoutExpired):
            child.wait(_POLL_S)
            return paused_s
        if is_cancelled():
            raise Cancelled
        if has_to_wait():
            if stopped_at is None:
                _signal(child, signal.SIGSTOP)
                stopped_at = time.monotonic()
        elif stopped_at is not None:
            _signal(child, signal.SIGCONT)
            paused_s += time.monotonic() - stopped_at
            stopped_at = None


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leave nothing of a process group behind."""
    _signal(child, signal.SIGKILL)  # reaches those who are stopped, too
    child.wait()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(child.pid, number)


def _dies_with_parent(parent: int) -> Callable[[], None]:
    """What a child does before it becomes the program: die when its parent does."""

    def ask_for_it() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != parent:
                os._exit(1)

    return ask_for_it


def _reason(log: Path, begin: int) -> str:
    """Why a program failed: its last line, unless that is a traceback's."""
    with log.open("rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    if "No space left on device" in last:
        return "The disk is full. What was learnt so far is kept: make room and start again."
    if last.startswith("MemoryError") or "not enough memory" in last:
        return "There is not enough memory to train. Give the machine more and start again."
    if not last or any(line.startswith("Traceback (most recent call last)") for line in lines):
        return f"The program of this stage failed. The run's folder has its log, {log.name}."
    return last[:1000]
