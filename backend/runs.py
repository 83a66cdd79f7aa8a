"""The folder of training runs: one folder per run, whose ``state.json`` is all that is known of it.

    runs/PROJECT/JOB/state.json   how far the run is, replaced as a whole
    runs/PROJECT/JOB/lock         held by whoever carries the run out; the kernel lets go of it
    runs/PROJECT/JOB/cancel       somebody wants it to end
    runs/PROJECT/accepted         a byte for every annotation since the last run

Web processes and trainers share the folder and nothing else. What the stages of a run write into
its folder is theirs; run_progress.py reads it, trainer.py carries a run out.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from backend.run_state import (
    STATE,
    Budget,
    Outcome,
    RunState,
    now,
    read_state,
    write_state,
)
from edgesam_core.errors import NoSuchRun, TrainingUnavailable

Doing = Literal["queued", "running", "interrupted", "done"]

_JOB = re.compile(r"(\d{1,18})-\d{8}T\d{12}")
_LOOK_S = 1.0  # for which a lock is tried again: a look at it holds it for an instant, too
_POLL_S = 0.02


class Runs:
    """The folder of runs; safe between threads and processes."""

    def __init__(self, data_dir: Path | None) -> None:
        """Read nothing yet.

        Args:
            data_dir: ``VersionSettings.data_dir``; None: there are no runs.
        """
        self._root = data_dir and data_dir / "runs"

    @property
    def are_kept(self) -> bool:
        """Whether there is a folder for them."""
        return self._root is not None

    def folder(self, job: str) -> Path:
        """The folder of a run.

        Raises:
            NoSuchRun: There is none.
        """
        found = _JOB.fullmatch(job)
        if self._root is None or not found:
            raise NoSuchRun
        path = self._root / found[1] / job
        if not (path / STATE).is_file():
            raise NoSuchRun
        return path

    def find(self, job: str) -> RunState:
        """How far a run is.

        Raises:
            NoSuchRun: There is none.
            TrainingUnavailable: Its state cannot be read.
        """
        return read_state(self.folder(job))

    def of(self, project_id: int | None = None) -> list[RunState]:
        """The runs of a project, or of all, newest first; one that cannot be read is left out."""
        if self._root is None:
            return []
        project = "*" if project_id is None else str(project_id)
        found = []
        for path in self._root.glob(f"{project}/*/{STATE}"):
            try:
                found.append(read_state(path.parent))
            except TrainingUnavailable:
                continue
        return sorted(found, key=lambda run: run.asked_at, reverse=True)

    def unfinished(self, project_id: int | None = None) -> list[RunState]:
        """The runs that are not done."""
        return [run for run in self.of(project_id) if not run.is_done]

    def request(
        self,
        project_id: int,
        budget: Budget,
        why: str,
        *,
        base: str | None = None,
        resume: bool = False,
    ) -> tuple[RunState, bool]:
        """A run for a project: the one that is not done, or else a new one.

        Args:
            project_id: The project.
            budget: Of a new run.
            why: Who asked.
            base: Version that a new run is to start from.
            resume: Rather than a new one, go on with the newest if it failed or was cancelled, and
                started from the same version.

        Returns:
            The run, and whether it is a new one.

        Raises:
            TrainingUnavailable: There is no folder, or it cannot be written.
        """
        with self._changing(project_id) as folder:
            runs = self.of(project_id)
            if waiting := next((run for run in runs if not run.is_done), None):
                return waiting, False
            asked = datetime.now(UTC)
            if resume and _may_go_on(runs, base):
                (folder / runs[0].job / "cancel").unlink(missing_ok=True)
                run = replace(
                    runs[0], stage="queued", outcome=None, reason="", ended_at=None, attempts=0,
                    minutes=budget.minutes or runs[0].minutes, steps=budget.steps or runs[0].steps,
                )  # fmt: skip
            else:
                job = f"{project_id}-{asked:%Y%m%dT%H%M%S%f}"
                (folder / job).mkdir()
                run = RunState(job, project_id, why, asked.isoformat(), base=base, **asdict(budget))
            write_state(folder / run.job, run)
            (folder / "accepted").unlink(missing_ok=True)
            return run, True

    def save(self, run: RunState) -> None:
        """Replace a run's state.

        Raises:
            TrainingUnavailable: It cannot be written; the earlier one stays.
        """
        try:
            write_state(self.folder(run.job), run)
        except OSError as exc:
            raise _not_written(exc) from exc

    @contextmanager
    def carrying_out(self, job: str) -> Iterator[int | None]:
        """Be the one who carries a run out.

        Yields:
            The descriptor of the lock, for child processes to inherit: as long as one of them
            lives, nobody else begins. None: somebody else carries the run out.
        """
        lock = _open_lock(self.folder(job))
        try:
            yield lock if _try_lock(lock, fcntl.LOCK_EX, wait_s=_LOOK_S) else None
        finally:
            os.close(lock)

    def is_carried_out(self, job: str) -> bool:
        """Whether somebody carries a run out at this moment."""
        lock = _open_lock(self.folder(job))
        try:
            return not _try_lock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def doing(self, run: RunState) -> Doing:
        """What a run is doing at this moment; interrupted: it was begun, and nobody goes on."""
        if run.is_done:
            return "done"
        if not run.started_at:
            return "queued"
        return "running" if self.is_carried_out(run.job) else "interrupted"

    def cancel(self, job: str) -> RunState:
        """Ask for the end of a run; one that nobody carries out ends here.

        Raises:
            NoSuchRun: There is none.
            TrainingUnavailable: The folder cannot be written.
        """
        folder = self.folder(job)
        try:
            if not read_state(folder).is_done:
                (folder / "cancel").touch()
        except OSError as exc:
            raise _not_written(exc) from exc
        with self.carrying_out(job) as is_ours:
            run = read_state(folder)
            return run if run.is_done or is_ours is None else self.end_cancelled(run)

    def end_cancelled(self, run: RunState) -> RunState:
        """Note that a run was cancelled."""
        return self.end(run, "cancelled", "It was cancelled. The model that was served stays.")

    def end(self, run: RunState, outcome: Outcome, reason: str) -> RunState:
        """Note how a run ended."""
        ended = replace(run, stage="done", outcome=outcome, reason=reason, ended_at=now())
        self.save(ended)
        return ended

    def is_cancelled(self, job: str) -> bool:
        """Whether somebody wants a run to end."""
        return (self.folder(job) / "cancel").exists()

    def accept(self, project_id: int) -> int:
        """Count one more accepted annotation.

        Returns:
            How many there were since the project's last run.

        Raises:
            TrainingUnavailable: The folder cannot be written.
        """
        with self._changing(project_id) as folder, (folder / "accepted").open("ab") as file:
            file.write(b".")
            return file.tell()

    @contextmanager
    def _changing(self, project_id: int) -> Iterator[Path]:
        """The folder of a project, which one at a time may change."""
        if self._root is None:
            raise TrainingUnavailable("Nothing can be trained here: set EDGESAM_DATA_DIR.")
        folder = self._root / str(int(project_id))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield folder
        except OSError as exc:
            raise _not_written(exc) from exc


def _may_go_on(runs: Sequence[RunState], base: str | None) -> bool:
    """Whether the first of these can be resumed; a base that is not known stops nobody."""
    if not runs or runs[0].outcome not in ("failed", "cancelled"):
        return False
    return None in (base, runs[0].base) or base == runs[0].base


def _open_lock(folder: Path) -> int:
    try:
        return os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise _not_written(exc) from exc


def _try_lock(lock: int, kind: int, *, wait_s: float = 0.0) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _not_written(exc: OSError) -> TrainingUnavailable:
    return TrainingUnavailable(
        f"The folder of training runs cannot be written ({exc.strerror}). The model that is served "
        "stays. Make room there, or set EDGESAM_DATA_DIR to another folder.",
        detail=str(exc),
    )
