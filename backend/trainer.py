"""Carries training runs out: ``python -m backend.trainer [JOB]``, never in a web process.

    snapshot    python -m backend.snapshot                    annotations become files
    training    TRAIN_PYTHON -m distillation.project_stage    they become a challenger bundle
    gate        TRAIN_PYTHON -m distillation.gate             is it better than the incumbent?

Then the challenger is kept as a version, and promoted if the gate says so (run_stages.py). With a
JOB this carries that run out; without one it is a worker for RQ's queue `training`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from types import FrameType

from backend import logs
from backend.click_watch import ClickWatch
from backend.machine_turns import MachineTurns
from backend.queues import TRAINERS
from backend.rq_worker import EncoderWorker, Functions
from backend.run_stages import Programs, Trainer
from backend.runs import Runs
from backend.settings import Settings, SettingsError
from backend.training import TRAIN
from backend.versions import Versions
from backend.worker import serve
from edgesam_core.errors import EdgeSamError

logger = logging.getLogger("backend.trainer")  # also where it runs as __main__

_NICE = 19


class TrainerWorker(EncoderWorker):
    """RQ's worker for the queue `training`; told to stop, it does not finish its run first."""

    role = TRAINERS
    overdue_s = None

    def __init__(
        self, url: str, functions: Functions, complaints: logs.Complaints, *, trainer: Trainer
    ) -> None:
        """Connect, as `EncoderWorker` does; `trainer` is told to stop."""
        super().__init__(url, functions, complaints)
        self._trainer = trainer

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop within a second; the run goes on where another trainer takes it up."""
        self._trainer.is_stopping = True
        super().request_stop(signum, frame)


def trainer_of(settings: Settings) -> Trainer:
    """The trainer that an environment asks for."""
    data_dir = settings.versions.data_dir
    clicks = ClickWatch(settings.store, settings.queues, settings.model.encodes_at_once)
    return Trainer(
        Runs(data_dir),
        Versions(settings.versions),
        settings.model,
        Programs.installed(settings.training),
        has_to_wait=clicks.is_anybody_waiting,
        turns=MachineTurns(data_dir and data_dir / "runs" / "turns", 1),
    )


def listen(url: str, trainer: Trainer) -> None:
    """Take runs from Redis until told to stop."""

    def train(job: str) -> str:
        return trainer.carry_out(job).stage

    serve(url, {TRAIN: train}, partial(TrainerWorker, trainer=trainer))


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry a run out, or take runs from Redis; 1 with a sentence where that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m backend.trainer", description=__doc__)
    parser.add_argument("job", nargs="?", help="a run of EDGESAM_DATA_DIR; none: listen to Redis")
    given = parser.parse_args(arguments)
    try:
        settings = Settings.from_env()
    except SettingsError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    logs.configure(settings.logs)
    os.nice(_NICE)
    trainer, url = trainer_of(settings), settings.queues.redis_url
    try:
        if given.job is not None:
            trainer.carry_out(given.job)
        elif url is None:
            sys.stderr.write("A trainer takes its runs from Redis: set REDIS_URL, or name one.\n")
            return 1
        else:
            settings.training.check()
            with suppress(KeyboardInterrupt):
                listen(url, trainer)
    except EdgeSamError as exc:
        logger.error("this trainer ends: %s%s", exc.sentence, f" ({exc.detail})" * bool(exc.detail))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
