"""RQ's worker, changed so that its death is noticed and its failures can be read.

RQ 2.12 brings the jobs; what is overridden here is its `SimpleWorker`, which runs them in its own
process, one after another. Added are signs of life each second, which is how clicks and other
workers learn of a worker's death within seconds, one line in the log for a job that fails and a
sentence that is kept with it, and an end to running whatever function somebody wrote into Redis.

worker.py says what such a worker runs.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker, worker_registration
from rq.exceptions import AbandonedJobError, StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException
from rq.utils import now

from backend import logs
from backend.jobs import JOB_TIMEOUT_S
from backend.queues import (
    BEAT_S,
    ENCODERS,
    add_sign_of_life,
    connect,
    redis_reason,
    redis_time,
    sign_off,
)
from edgesam_core.errors import EdgeSamError

logger = logging.getLogger(__name__)

Functions = Mapping[str, Callable[..., str]]
"""What a worker runs, by the name that jobs give; each answers with a word for the log."""

ABANDONED_S = 15
"""After so long without a sign of life the job of a worker is tried again by another one."""

_IDLE_S = 20  # RQ's worker_ttl: it waits 15 s less for a job, then looks after abandoned ones
_MAINTENANCE_S = 5
_REDIS_TIMEOUT_S = 2.0


class EncoderWorker(SimpleWorker):
    """RQ's worker without a child process, noticed by others when it dies."""

    log_result_lifespan = False
    max_connection_wait_time = 2.0  # RQ doubles its pause up to a minute, and clicks would wait

    role = ENCODERS
    overdue_s: float | None = JOB_TIMEOUT_S + 10
    # RQ's timeout does not reach a job that hangs outside Python: so long, and the beats end

    def __init__(self, url: str, functions: Functions, complaints: logs.Complaints) -> None:
        """Connect.

        Args:
            url: Of Redis.
            functions: What may be run; a job that names anything else fails.
            complaints: Where a Redis that went away is told of.

        Raises:
            RedisError: It does not answer.
        """
        super().__init__(
            list(self.role.queues),
            name=f"{socket.gethostname()}-{os.getpid()}-{time.time_ns() // 1_000_000}",
            connection=connect(url, timeout_s=_REDIS_TIMEOUT_S),
            serializer=JSONSerializer,
            job_class=_only(functions),
            worker_ttl=_IDLE_S,
            maintenance_interval=_MAINTENANCE_S,
            log_job_description=False,
        )
        self.is_stopping = False
        self._complaints = complaints
        self._second_connection: Redis = connect(url, timeout_s=_REDIS_TIMEOUT_S)
        self._running: tuple[Job, Execution, float] | None = None
        self._has_ended = threading.Event()
        self._beats = threading.Thread(target=self._keep_beating, name="beats", daemon=True)
        self._retries = RQScheduler(
            self.queues,
            connection=self.connection,
            serializer=JSONSerializer,
            logging_level=logging.WARNING,
        )

    # --- alive, and said to be ---

    def register_birth(self) -> None:
        """Be known from now on."""
        super().register_birth()
        self._beats.start()

    def teardown(self) -> None:
        """Be gone for everybody at once."""
        self._has_ended.set()
        if self._beats.is_alive():
            self._beats.join()
        with suppress(RedisError):
            sign_off(self._second_connection, self.name, self.role)
            super().teardown()

    def subscribe(self) -> None:
        """Take no commands: those of RQ end a child process, and there is none."""

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop after the present job, if there is one."""
        self.is_stopping = True
        super().request_stop(signum, frame)

    def _keep_beating(self) -> None:
        while True:
            try:
                self._beat()
            except RedisError as exc:
                self._complaints.warn(no_answer(exc))
            if self._has_ended.wait(BEAT_S):
                return

    def _beat(self) -> None:
        """A sign of life, and everything that a Redis that was emptied has forgotten of it."""
        running = self._running
        if running and self.overdue_s and time.monotonic() - running[2] > self.overdue_s:
            return
        at = redis_time(self._second_connection)
        with self._second_connection.pipeline() as pipeline:
            add_sign_of_life(pipeline, self.name, at=at, role=self.role)
            worker_registration.register(self, pipeline)
            pipeline.hset(self.key, mapping=self.serialize())
            pipeline.expire(self.key, self.worker_ttl + 60)
            if running:
                job, execution, _ = running
                registry = job.started_job_registry
                registry.add_execution(execution, pipeline, ttl=ABANDONED_S, xx=True)
            pipeline.execute()

    def run_maintenance_tasks(self) -> None:
        """Queue again what a dead worker left behind and what has waited for its next attempt."""
        super().run_maintenance_tasks()
        if self._retries.acquire_locks():
            try:
                self._retries.enqueue_scheduled_jobs()
            finally:
                self._retries.release_locks()

    # --- one job ---

    def prepare_execution(self, job: Job) -> Execution:
        """Say who has the job, in a form that ends soon after its worker."""
        execution = super().prepare_execution(job)
        self._running = job, execution, time.monotonic()
        with suppress(RedisError):
            self._beat()
        return execution

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job under the id of the request that asked for it."""
        logs.begin(job.meta.get("request_id"))
        try:
            super().execute_job(job, queue)
        except RedisError as exc:
            logger.warning("Redis went away during a job (%s)", type(exc).__name__)
            raise StopRequested from exc  # out of this loop; `serve` begins a new one
        finally:
            self._running = None
            logs.begin("-")

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """One line for the log; no second attempt where it would fail like the first."""
        exc = exc_info[1]
        if isinstance(exc, EdgeSamError) and exc.status not in (502, 503, 504):
            job.retries_left = 0
        seconds = (now() - job.started_at).total_seconds() if job.started_at else 0.0
        logger.log(
            logging.WARNING if job.retries_left else logging.ERROR,
            "%s: failed after %.0f ms%s: %s%s",
            job.description,
            seconds * 1000,
            ", will be tried again" if job.retries_left else "",
            reason_of(exc),
            f" ({exc.detail})" if isinstance(exc, EdgeSamError) and exc.detail else "",
            exc_info=None if isinstance(exc, EdgeSamError | JobTimeoutException) else exc,
        )

    def handle_job_failure(
        self, job: Job, queue: Queue, started_job_registry: Any = None, exc_string: str = ""
    ) -> None:
        """Keep the job with a reason that can be read, in place of RQ's traceback."""
        exc = sys.exc_info()[1]
        reason = exc_string if exc is None else reason_of(exc)
        super().handle_job_failure(job, queue, started_job_registry, reason)


def reason_of(exc: BaseException) -> str:
    """Why a job failed, in a sentence."""
    if isinstance(exc, EdgeSamError):
        return exc.sentence
    if isinstance(exc, JobTimeoutException):
        return f"The image was not fetched and encoded within {JOB_TIMEOUT_S} s."
    return f"Something went wrong ({type(exc).__name__}). The worker's log has the details."


def _only(functions: Functions) -> type[Job]:
    """Jobs that run these functions by name and never import what somebody wrote into Redis."""

    class OfferedJob(Job):
        def _handle_failure(self, exc_string: str, *args: Any, **options: Any) -> None:
            if AbandonedJobError.__name__ in exc_string:
                exc_string = "The workers that had this job died: its image may need more memory."
            super()._handle_failure(exc_string, *args, **options)

        @property
        def func(self) -> Callable[..., str]:
            try:
                return functions[str(self.func_name)]
            except KeyError as exc:
                raise EdgeSamError("This worker does not run jobs of this name.") from exc

    return OfferedJob


def no_answer(exc: RedisError) -> str:
    """What the log says of a Redis that is away."""
    return f"The Redis of REDIS_URL does not answer ({redis_reason(exc)}); trying on."
