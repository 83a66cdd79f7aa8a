"""One training run from its beginning to a verdict; what goes wrong is kept with it as a sentence.

Each stage is a program of its own (stage_process.py) that goes on where it was stopped, so a run
that was killed at any moment is simply begun again. The model that serves is touched by nothing but
the promotion at the end. trainer.py is who does this, runs.py where it is kept.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backend.machine_turns import MachineTurns
from backend.model import ModelSettings, ServedModel
from backend.run_progress import gate_of
from backend.run_state import RunState, Stage, now
from backend.runs import Runs
from backend.stage_process import Cancelled, Killed, run_stage
from backend.training import TrainingSettings
from backend.versions import Versions
from edgesam_core.bundle import Bundle
from edgesam_core.errors import EdgeSamError, RunError, TrainingUnavailable

logger = logging.getLogger(__name__)

TRIES = 3
"""So often is a stage begun whose process somebody kills: memory is mostly why."""

MOST_ATTEMPTS = 20
"""So often is a run begun again after its trainer was killed; then it has failed."""

_UNEXPECTED = "The training stopped by a mistake of its own. The trainer's log has the details."
_PAUSE_S = 1.0


@dataclass(frozen=True)
class Programs:
    """What is run for each stage; the stage's own arguments follow."""

    snapshot: tuple[str, ...]
    training: tuple[str, ...]
    gate: tuple[str, ...]

    @classmethod
    def installed(cls, settings: TrainingSettings) -> Programs:
        """Those of this repository."""
        python = str(settings.python)
        return cls(
            (sys.executable, "-m", "backend.snapshot"),
            (python, "-m", "distillation.project_stage", str(settings.recipe)),
            (python, "-m", "distillation.gate"),
        )


@dataclass(frozen=True)
class Verdict:
    """What the trainer has to know of ``gate.json``."""

    promote: bool
    reason: str
    incumbent: str
    # version that the challenger was compared with

    @classmethod
    def read(cls, run: Path) -> Verdict | None:
        """What the gate said; None where it has not finished."""
        gate = gate_of(run)
        if gate is None:
            return None
        try:
            return cls(gate["promote"] is True, str(gate["reason"]), str(gate["incumbent"]))
        except KeyError as exc:
            raise RunError("The gate's verdict is incomplete, so nothing was promoted.") from exc


class Trainer:
    """Carries runs out, one after another."""

    def __init__(
        self,
        runs: Runs,
        versions: Versions,
        model: ModelSettings,
        programs: Programs,
        *,
        has_to_wait: Callable[[], bool] = lambda: False,
        turns: MachineTurns | None = None,
    ) -> None:
        """Take what a run needs.

        Args:
            runs: The folder of runs.
            versions: Where challengers are kept, and who is served what.
            model: The server's own model: the base of every training.
            programs: What is run for each stage.
            has_to_wait: Whether the stage that runs should stand still now.
            turns: One for each run that may be carried out on this machine at a time.
        """
        self._runs = runs
        self._versions = versions
        self._model = model
        self._programs = programs
        self._has_to_wait = has_to_wait
        self._turns = turns or MachineTurns(None, 1)
        self.is_stopping = False

    def carry_out(self, job: str) -> RunState:
        """Carry a run out, or on; what goes wrong is kept with it.

        Returns:
            How far it is then; not done where somebody else carries it out.

        Raises:
            NoSuchRun: There is none.
            TrainingUnavailable: The run's state cannot be written, or this trainer is stopping.
                The run is not done and will be begun again.
        """
        with self._runs.carrying_out(job) as lock:
            run = self._runs.find(job)
            if lock is None or run.is_done:
                return run
            try:
                done = self._all_stages(run, lock)
            except Cancelled:
                done = self._runs.end_cancelled(self._runs.find(job))
            except TrainingUnavailable:
                raise
            except EdgeSamError as exc:
                logger.error("%s: %s%s", job, exc.sentence, f" ({exc.detail})" * bool(exc.detail))
                done = self._runs.end(self._runs.find(job), "failed", exc.sentence)
            except Exception:
                logger.exception("%s", job)
                done = self._runs.end(self._runs.find(job), "failed", _UNEXPECTED)
            logger.info("%s: %s. %s", job, done.outcome, done.reason)
            return done

    def _all_stages(self, run: RunState, lock: int) -> RunState:
        if run.attempts >= MOST_ATTEMPTS:
            raise RunError(
                f"This run was interrupted {run.attempts} times. What it learnt is kept; start it "
                "again with the option resume where the machine is up for longer."
            )
        run = replace(run, attempts=run.attempts + 1)
        self._runs.save(run)
        self._wait_for_turn(run.job)
        try:
            return self._stages(replace(run, started_at=run.started_at or now()), lock)
        finally:
            self._turns.give_back()

    def _stages(self, run: RunState, lock: int) -> RunState:
        folder = self._runs.folder(run.job)
        if run.base not in (None, ServedModel(self._model).version):
            raise RunError(
                "This run began with another model than the trainer has. Give server and trainer "
                "the same MODEL and the same files, or start a new run."
            )
        if not (folder / "snapshot" / "snapshot.json").exists():
            command = (*self._programs.snapshot, str(run.project), str(folder))
            run = self._stage(run, "snapshot", command, lock)
        if not (folder / "challenger" / "manifest.json").exists():
            command = (*self._programs.training, str(folder), "--base", str(self._model.folder()))
            run = self._stage(run, "training", (*command, *_budget(run)), lock)
        run = replace(run, version=Bundle.open(folder / "challenger").manifest.version)
        for _ in range(TRIES):
            version, incumbent = self._incumbent(run)
            verdict = Verdict.read(folder)
            if verdict is not None and verdict.incumbent == version:
                return self._judge(run, folder / "challenger", verdict)
            (folder / "gate.json").unlink(missing_ok=True)  # it compared with another version
            command = (*self._programs.gate, str(incumbent), str(folder))
            run = self._stage(run, "gate", command, lock)
        raise RunError(
            "The gate gave no verdict against the version that is served, so nothing was promoted."
        )

    def _incumbent(self, run: RunState) -> tuple[str, Path]:
        """Version and folder of what the project is served now."""
        current = self._versions.current(run.project)
        if current is not None:
            return current, self._versions.bundle(current)
        folder = self._model.folder()
        return Bundle.open(folder).manifest.version, folder

    def _judge(self, run: RunState, challenger: Path, verdict: Verdict) -> RunState:
        version = self._versions.add(run.project, challenger, f"trained by {run.job}")
        if not verdict.promote:
            self._versions.refuse(run.project, version, verdict.reason)
            return self._runs.end(run, "kept", verdict.reason)
        self._versions.promote(run.project, version, verdict.reason)
        return self._runs.end(run, "promoted", verdict.reason)

    def _stage(self, run: RunState, stage: Stage, command: Sequence[str], lock: int) -> RunState:
        """Run a stage to its end; begun again where somebody kills its process."""
        run = replace(run, stage=stage)
        self._runs.save(run)
        logger.info("%s: %s", run.job, stage)
        for _ in range(TRIES):
            try:
                paused_s = run_stage(
                    command,
                    self._runs.folder(run.job) / f"{stage}.log",
                    lock=lock,
                    is_cancelled=lambda: self._is_cancelled(run.job),
                    has_to_wait=self._has_to_wait,
                )
            except Killed as exc:
                logger.warning("%s: %s was killed (%s)", run.job, stage, exc.detail)
                time.sleep(_PAUSE_S)
            else:
                return replace(run, paused_s=round(run.paused_s + paused_s, 1))
        raise RunError(
            f"The process of this stage was killed {TRIES} times, as happens when memory runs out. "
            "Give the machine more memory. What was learnt so far is kept."
        )

    def _wait_for_turn(self, job: str) -> None:
        while not self._turns.take(_PAUSE_S):
            self._is_cancelled(job)

    def _is_cancelled(self, job: str) -> bool:
        """Whether somebody wants the run to end.

        Raises:
            Cancelled: While it waits for its turn, too.
            TrainingUnavailable: It is this trainer that has to end.
        """
        if self.is_stopping:
            raise TrainingUnavailable("The trainer is stopping. The run goes on when it is back.")
        if self._runs.is_cancelled(job):
            raise Cancelled
        return False


def _budget(run: RunState) -> tuple[str, ...]:
    minutes = () if run.minutes is None else ("--minutes", f"{run.minutes:g}")
    steps = () if run.steps is None else ("--steps", str(run.steps))
    return (*minutes, *steps)
