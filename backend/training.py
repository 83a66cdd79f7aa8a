"""Starts training runs and never carries one out: an answer within a second, whatever happens.

Who carries a run out (trainer.py) is a worker that listens to RQ's queue `training`, or, without
one, a process of its own on this machine, which outlives the web process. The job is an id in
either case. A run that nobody carries out, because its trainer was killed or the machine went down,
is started again by the next web process that looks.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Retry
from rq.exceptions import DuplicateJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from backend.logs import Complaints
from backend.model import ModelSettings, ServedModel
from backend.queues import TRAINERS, TRAINING, QueueSettings, connect, listening, redis_reason
from backend.run_state import Budget, RunState
from backend.runs import Runs
from backend.watch import Watch
from edgesam_core.errors import EdgeSamError, TrainingUnavailable

logger = logging.getLogger(__name__)

TRAIN = "train"
"""The one function that trainers offer."""

LOOK_S = 10.0
"""Between two looks for runs that nobody carries out."""

_REPOSITORY = Path(__file__).resolve().parents[1]
_REDIS_TIMEOUT_S = 0.3
_ENDLESS = -1  # RQ's word for no time limit
_RETRIES = Retry(max=20, interval=5)
_FAILED_KEPT_S = 24 * 3600
_NO_ENVIRONMENT = (
    "Nothing can be trained here: the environment for training is missing. Run make setup-train "
    "where the server runs, or start a trainer (make trainer) beside its Redis."
)


@dataclass(frozen=True)
class TrainingSettings:
    """How projects are trained."""

    python: Path = _REPOSITORY / ".venv-train" / "bin" / "python"
    # Python of the environment for training (`make setup-train`), where no trainer listens.
    recipe: Path = _REPOSITORY / "distillation" / "recipes" / "project.yaml"
    # Recipe that projects are trained by.
    minutes: float | None = None
    # Minutes of one core that a run may train, unless its request says otherwise; without it, as
    # long as the recipe says.
    every_annotations: int = 0
    # After so many accepted annotations of a project it is trained by itself; 0 means never.

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.minutes is not None and not 0 < self.minutes < 1e6:
            raise ValueError("minutes should be more than 0.")
        if self.every_annotations < 0:
            raise ValueError("every_annotations should be 0 (never) or more.")

    @property
    def has_environment(self) -> bool:
        """Whether this machine can train."""
        return shutil.which(self.python) is not None

    def check(self) -> None:
        """Refuse to begin where nothing can be trained.

        Raises:
            TrainingUnavailable: The environment is missing.
        """
        if not self.has_environment:
            raise TrainingUnavailable(_NO_ENVIRONMENT)


class Training:
    """Starts runs; one per process, safe between threads."""

    def __init__(
        self, settings: TrainingSettings, runs: Runs, model: ModelSettings, queues: QueueSettings
    ) -> None:
        """Connect to nothing yet.

        Args:
            settings: How projects are trained.
            runs: The folder of runs.
            model: The server's own model, which every training starts from.
            queues: Where Redis is, if there is one.
        """
        self.runs = runs
        self._settings = settings
        self._model = model
        self._redis: Redis | None = None
        if queues.redis_url is not None:
            self._redis = connect(queues.redis_url, timeout_s=_REDIS_TIMEOUT_S)
        self._started_here: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._watch = Watch(self.look, every_s=LOOK_S, name="training")
        self._complaints = Complaints(logger)

    def request(
        self, project_id: int, budget: Budget | None = None, why: str = "", *, resume: bool = False
    ) -> tuple[RunState, bool]:
        """Have a project trained; a run that is not done is joined.

        Args:
            project_id: The project.
            budget: Of a new run; None: the settings'.
            why: Who or what asks.
            resume: Go on with the newest run if it failed or was cancelled.

        Returns:
            The run, and whether it is a new one.

        Raises:
            TrainingUnavailable: There is nobody to carry it out, nothing to start from, or no
                folder that can be written.
        """
        waiting = self.runs.unfinished(project_id)
        if waiting and self.runs.is_carried_out(waiting[0].job):
            return waiting[0], False
        base = self._base_version()
        trainer_listens = self._trainer_listens()
        if not trainer_listens:
            self._settings.check()
        budget = budget or Budget()
        if budget.minutes is None:
            budget = Budget(self._settings.minutes, budget.steps)
        run, is_new = self.runs.request(project_id, budget, why, base=base, resume=resume)
        self._launch(run.job, trainer_listens)
        if is_new:
            logger.info("project %d is trained: %s, %s", project_id, run.job, why)
        return run, is_new

    def accepted(self, project_id: int, annotation: Mapping[str, Any]) -> None:
        """Count an annotation, and have its project trained when there are enough; never raises."""
        if not self._settings.every_annotations or not self.runs.are_kept:
            return
        if annotation.get("was_cancelled") or not annotation.get("result"):
            return
        try:
            count = self.runs.accept(project_id)
            if count >= self._settings.every_annotations:
                self.request(project_id, why=f"{count} annotations")
        except EdgeSamError as exc:
            self._complaints.warn(f"Project {project_id} is not trained by itself: {exc.sentence}")

    def start(self) -> None:
        """Look after runs from now on; in the process that serves, since a fork has no threads."""
        if self.runs.are_kept:
            self._watch.start()

    def stop(self) -> None:
        """Look after them no more; what was started goes on."""
        self._watch.stop()

    def look(self) -> None:
        """Start every run anew that is not done and that nobody carries out."""
        self._reap()
        for run in self.runs.unfinished():
            try:
                if self.runs.is_carried_out(run.job):
                    continue
                trainer_listens = self._trainer_listens()
                if trainer_listens or self._settings.has_environment:
                    self._launch(run.job, trainer_listens)
            except EdgeSamError as exc:
                self._complaints.warn(f"{run.job} does not go on: {exc.sentence}")

    def _base_version(self) -> str:
        """Version of the server's own model.

        Raises:
            TrainingUnavailable: It cannot be trained on.
        """
        if not self.runs.are_kept:
            raise TrainingUnavailable("Nothing can be trained here: set EDGESAM_DATA_DIR.")
        if not (self._model.folder() / "weights.safetensors").is_file():
            raise TrainingUnavailable(
                "The model that is served brings no weights to start from (weights.safetensors), "
                "so it cannot be trained. Serve one that does, such as default."
            )
        return ServedModel(self._model).version

    def _trainer_listens(self) -> bool:
        if self._redis is None:
            return False
        try:
            return bool(listening(self._redis, TRAINERS))
        except RedisError as exc:
            self._complaints.warn(
                f"The Redis of REDIS_URL takes no training runs ({redis_reason(exc)}): they are "
                "carried out on this machine."
            )
            return False

    def _launch(self, job: str, trainer_listens: bool) -> None:
        """Have a run carried out; to do so twice does no harm."""
        if trainer_listens:
            try:
                self._enqueue(job)
            except RedisError:
                self._settings.check()
            else:
                return
        self._start_process(job)

    def _enqueue(self, job: str) -> None:
        assert self._redis is not None, "a trainer was found without Redis"
        queue = Queue(TRAINING, connection=self._redis, serializer=JSONSerializer)
        for _ in range(2):
            try:
                queue.enqueue_call(
                    TRAIN,
                    kwargs={"job": job},
                    job_id=job,
                    unique=True,
                    timeout=_ENDLESS,
                    result_ttl=0,
                    failure_ttl=_FAILED_KEPT_S,
                    retry=_RETRIES,
                    description=f"train {job}",
                )
            except DuplicateJobError:
                status = self._redis.hget(Job.key_for(job), "status")
                if status not in (None, JobStatus.FAILED.encode(), JobStatus.FINISHED.encode()):
                    return
                self._redis.delete(Job.key_for(job))
            else:
                return

    def _start_process(self, job: str) -> None:
        with self._lock:
            started = self._started_here.get(job)
            if started is not None and started.poll() is None:
                return
            try:
                with (self.runs.folder(job) / "trainer.log").open("ab") as log:
                    self._started_here[job] = subprocess.Popen(
                        [sys.executable, "-m", "backend.trainer", job],
                        cwd=_REPOSITORY,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
            except OSError as exc:
                raise TrainingUnavailable(
                    f"The training could not be started ({exc.strerror}). The model that is served "
                    "stays.",
                    detail=str(exc),
                ) from exc

    def _reap(self) -> None:
        """Let go of the processes that have ended."""
        with self._lock:
            ended = [j for j, process in self._started_here.items() if process.poll() is not None]
            for job in ended:
                del self._started_here[job]
