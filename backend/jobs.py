"""Encodes as jobs: one per image however many ask, and a click that never waits in vain.

A job names an image and carries none: ids and paths as JSON, never pickle. Its id is the hash of
the embedding's key, so that clicks of any number of processes on one image share one job; a
prefetch that a click wants is moved to the front queue. What the worker made lies in the shared
store under that key. While the job is queued, runs, waits for its retry or is kept as failed,
it has an entry in Redis; a job that is done has none.

`Jobs.encode` answers False, and the image is encoded where it was clicked on, whenever waiting
would not help: without Redis, without a worker that is alive, when the worker of the job dies, when
the job fails, and after `worker_wait_s`. The worker is worker.py.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

from redis.exceptions import RedisError
from rq import Queue, Retry
from rq.exceptions import DuplicateJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from backend import logs
from backend.image_address import is_data_uri
from backend.metrics import Metrics
from backend.queues import (
    ENCODER_QUEUES,
    INTERACTIVE,
    PREFETCH,
    QueueSettings,
    connect,
    eviction_complaint,
    listening,
    redis_reason,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
Outcome = Literal["encoded", "failed", "late", "lost", "no_worker", "no_redis"]

ENCODE = "encode"
"""The one function that encoder workers offer."""

JOB_TIMEOUT_S = 180
"""For fetching and encoding one image."""

RETRY_AFTER_S = (5, 20)
"""Before the second and the third attempt, where a host did not answer."""

_REDIS_TIMEOUT_S = 1.0
_REDIS_PAUSE_S = 5.0  # for which a Redis that failed is not asked again
_POLL_S = 0.02
_LOOK_AROUND_S = 1.0  # between two looks whether the worker lives and the job is where it should be
_FAILED_PAUSE_S = 60  # for which a job that failed is not tried again
_FAILED_KEPT_S = 24 * 3600
_QUEUED_KEPT_S = {INTERACTIVE: 300, PREFETCH: 24 * 3600}

_TO_INTERACTIVE = """
    if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then
        redis.call('HSET', KEYS[3], 'origin', ARGV[2])
        redis.call('RPUSH', KEYS[2], ARGV[1])
    end
"""


@dataclass(frozen=True)
class EncodeRequest:
    """What a worker must know to encode an image; all of it is JSON."""

    uri: str
    task_id: int | None
    image_key: str | None
    # sha256 of the bytes that were clicked on; None: whatever the address gives
    version: str
    # of the bundle
    with_proposals: bool
    crop_xyxy: Sequence[int] | None = None
    # the part of the image that is wanted, in pixels of the original (second_look.py); None: all


def _text(value: bytes | str | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def job_id_of(key: str) -> str:
    """The id of the job that makes the embedding with this key."""
    return hashlib.sha256(key.encode()).hexdigest()


class Jobs:
    """Asks workers for embeddings; one per process, safe between threads, never raises."""

    def __init__(self, settings: QueueSettings, metrics: Metrics) -> None:
        """Connect to nothing yet.

        Args:
            settings: Where Redis is, if there is one.
            metrics: Where outcomes are counted.
        """
        self._settings = settings
        self._metrics = metrics
        self._complaints = logs.Complaints(logger)
        self._silent_until = 0.0
        self._has_checked_policy = False
        self.enabled = settings.redis_url is not None
        if settings.redis_url is not None:
            self._redis = connect(settings.redis_url, timeout_s=_REDIS_TIMEOUT_S)
            self._move = self._redis.register_script(_TO_INTERACTIVE)
            self._queues = {
                name: Queue(name, connection=self._redis, serializer=JSONSerializer)
                for name in ENCODER_QUEUES
            }

    def encode(self, request: EncodeRequest, *, key: str) -> bool:
        """Have a worker encode an image that someone waits for, and wait.

        Args:
            request: The image; a ``data:`` URI is not sent.
            key: Of the embedding.

        Returns:
            Whether the shared store should have it now. False: encode it here.
        """
        if not self.enabled or is_data_uri(request.uri):
            return False
        outcome = self._ask(lambda: self._encode(request, job_id_of(key)), otherwise="no_redis")
        self._metrics.encode_jobs.labels(outcome).inc()
        if outcome == "no_worker":
            self._complaints.warn(
                "No worker listens (make worker): images are encoded in this process."
            )
        return outcome == "encoded"

    def prefetch(self, request: EncodeRequest, *, key: str) -> bool:
        """Have a worker encode an image when it has time; does not wait.

        Returns:
            Whether a worker will see to it. False: there is none, or no Redis.
        """
        if not self.enabled or is_data_uri(request.uri):
            return False

        def enqueue() -> bool:
            return bool(self._workers()) and self._enqueue(PREFETCH, request, job_id_of(key))

        return self._ask(enqueue, otherwise=False)

    def _ask(self, question: Callable[[], T], *, otherwise: T) -> T:
        """An answer that needs Redis; a Redis that failed is left alone for a while."""
        if time.monotonic() < self._silent_until:
            return otherwise
        try:
            return question()
        except RedisError as exc:
            self._silent_until = time.monotonic() + _REDIS_PAUSE_S
            self._complaints.warn(
                f"The Redis of REDIS_URL takes no jobs ({redis_reason(exc)}): images are encoded "
                "in this process."
            )
            return otherwise

    def _encode(self, request: EncodeRequest, job_id: str) -> Outcome:
        if not self._workers():
            return "no_worker"
        if not self._enqueue(INTERACTIVE, request, job_id):
            return "failed"
        return self._wait(job_id)

    def _workers(self) -> frozenset[str]:
        """Who listens; the first time, also a word about a policy that may lose jobs."""
        workers = listening(self._redis)
        if not self._has_checked_policy:
            self._has_checked_policy = True
            if complaint := eviction_complaint(self._redis):
                self._complaints.warn(complaint)
        return workers

    def _enqueue(self, queue: str, request: EncodeRequest, job_id: str) -> bool:
        """Make the job unless there is one.

        Returns:
            Whether it is queued or runs. False: it failed, and its next attempt is not now.
        """
        for _ in range(2):
            try:
                self._queues[queue].enqueue_call(
                    ENCODE,
                    kwargs=asdict(request),
                    job_id=job_id,
                    unique=True,
                    timeout=JOB_TIMEOUT_S,
                    ttl=_QUEUED_KEPT_S[queue],
                    result_ttl=0,
                    failure_ttl=_FAILED_KEPT_S,
                    retry=Retry(max=len(RETRY_AFTER_S), interval=list(RETRY_AFTER_S)),
                    description=f"encode an image of task {request.task_id}",
                    meta={"request_id": logs.current().request_id},
                )
                return True
            except DuplicateJobError:
                status, _ = self._look(job_id)
            if status in (None, JobStatus.QUEUED, JobStatus.STARTED):
                if queue == INTERACTIVE:
                    self._to_interactive(job_id)
                return True
            if status == JobStatus.SCHEDULED or self._failed_lately(job_id):
                return False
            self._forget(job_id)
        return True

    def _wait(self, job_id: str) -> Outcome:
        """Wait until the job is done or waiting has become useless."""
        now = time.monotonic()
        deadline, next_look = now + self._settings.worker_wait_s, now
        was_queued_nowhere = False
        while now < deadline:
            status, worker = self._look(job_id)
            if status is None:
                return "encoded"
            if status not in (JobStatus.QUEUED, JobStatus.STARTED):
                return "failed"
            if now >= next_look:
                next_look = now + _LOOK_AROUND_S
                workers = self._workers()
                if not workers:
                    return "no_worker"
                if status == JobStatus.STARTED and worker not in workers:
                    return "lost"  # RQ will try it again, for whoever comes next
                is_nowhere = status == JobStatus.QUEUED and not self._is_in_a_queue(job_id)
                if is_nowhere and was_queued_nowhere:
                    self._forget(job_id)  # its worker died between taking it and saying so
                    return "lost"
                was_queued_nowhere = is_nowhere
            time.sleep(_POLL_S)
            now = time.monotonic()
        return "late"

    def _look(self, job_id: str) -> tuple[str | None, str | None]:
        """Status of a job and name of its worker; None where it has none."""
        status, worker = self._redis.hmget(Job.key_for(job_id), "status", "worker_name")
        return _text(status), _text(worker)

    def _to_interactive(self, job_id: str) -> None:
        keys = [self._queues[PREFETCH].key, self._queues[INTERACTIVE].key, Job.key_for(job_id)]
        self._move(keys=keys, args=[job_id, INTERACTIVE])

    def _failed_lately(self, job_id: str) -> bool:
        """Whether a job that failed did so within the pause; its remaining time here tells."""
        return _FAILED_KEPT_S - self._redis.ttl(Job.key_for(job_id)) < _FAILED_PAUSE_S

    def _is_in_a_queue(self, job_id: str) -> bool:
        places = (self._redis.lpos(queue.key, job_id) for queue in self._queues.values())
        return any(place is not None for place in places)

    def _forget(self, job_id: str) -> None:
        """Let the next asker make the job anew."""
        with self._redis.pipeline() as pipeline:
            pipeline.delete(Job.key_for(job_id))
            for queue in self._queues.values():
                pipeline.zrem(queue.failed_job_registry.key, job_id)
            pipeline.execute()
