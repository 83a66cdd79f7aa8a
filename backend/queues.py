"""The queues between web processes and workers: names, connection to Redis, who is alive.

Jobs go through RQ on the Redis that ``REDIS_URL`` names. Whether a worker is alive is not left to
RQ, which takes minutes to miss one: every worker writes a sign of life each second, and one that is
silent for `SILENT_S` is gone for everybody. Redis's own clock counts, so machines need not agree.

jobs.py asks, worker.py answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as NoConnection
from redis.retry import Retry

INTERACTIVE, PREFETCH, TRAINING = "interactive", "prefetch", "training"
QUEUES = (INTERACTIVE, PREFETCH, TRAINING)
"""In the order in which they are served: a click, what comes next, what may take the night."""

ENCODER_QUEUES = (INTERACTIVE, PREFETCH)
"""What a worker without torch can do."""

BEAT_S = 1.0
"""Between two signs of life of a worker."""

SILENT_S = 3.0
"""After so long without one a worker is taken for dead; wrongly so, on a machine that is too busy,
costs an encode more."""

_FORGOTTEN_S = 3600.0


@dataclass(frozen=True)
class Role:
    """A kind of worker: what it listens to, and where it says that it is alive."""

    queues: tuple[str, ...]
    key: str
    # of a sorted set in Redis: a worker's name, when it was last alive


ENCODERS = Role(ENCODER_QUEUES, "edgesam:encoders")
TRAINERS = Role((TRAINING,), "edgesam:trainers")


@dataclass(frozen=True)
class QueueSettings:
    """Where jobs go, and how long a click waits for a worker."""

    redis_url: str | None = field(default=None, repr=False)
    # Redis for jobs, `redis://host:6379/0`, with `maxmemory-policy noeviction`, not shared with
    # other programs: workers (`make worker`) then encode images for all web processes. Without it
    # each process encodes for itself.
    worker_wait_s: float = 10.0
    # Seconds that a click waits for a worker before its image is encoded where the click arrived.

    def __post_init__(self) -> None:
        """Refuse an address that is not Redis's, and a wait without end."""
        if self.redis_url and not self.redis_url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("redis_url should begin with redis://, rediss:// or unix://.")
        if not 0 < self.worker_wait_s <= 60:
            raise ValueError("worker_wait_s should lie in 0..60: someone is waiting for a mask.")


def connect(url: str, *, timeout_s: float) -> Redis:
    """A client that connects when it is first used and gives up soon; safe between threads.

    Args:
        url: From `QueueSettings.redis_url`.
        timeout_s: Seconds for connecting and for each answer. A closed connection is opened once
            more; a Redis that hangs is not asked twice.
    """
    return Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 1, supported_errors=(NoConnection,)),
    )


def redis_time(redis: Redis) -> float:
    """Seconds since the epoch, by Redis's clock."""
    seconds, microseconds = redis.time()
    return float(seconds + microseconds / 1e6)


def add_sign_of_life(pipeline: Pipeline, worker: str, *, at: float, role: Role = ENCODERS) -> None:
    """Note that a worker is alive; `at` is `redis_time`."""
    pipeline.zadd(role.key, {worker: at})
    pipeline.zremrangebyscore(role.key, "-inf", at - _FORGOTTEN_S)


def sign_off(redis: Redis, worker: str, role: Role = ENCODERS) -> None:
    """Note that a worker ends."""
    redis.zrem(role.key, worker)


def listening(redis: Redis, role: Role = ENCODERS) -> frozenset[str]:
    """Names of the workers that are alive."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.zrange(role.key, 0, -1, withscores=True)
        (seconds, _), workers = pipeline.execute()
    return frozenset(name.decode() for name, at in workers if seconds - at < SILENT_S)


def redis_reason(exc: RedisError) -> str:
    """Why Redis did not do as it was asked, for a log: in its own words, where it gave any."""
    if isinstance(exc, ResponseError | AuthenticationError):
        return str(exc).split(". ")[0].rstrip(".")
    return type(exc).__name__


def eviction_complaint(redis: Redis) -> str | None:
    """What is wrong with Redis's eviction policy for jobs; None where nothing is."""
    try:
        memory: dict[str, Any] = redis.info("memory")
    except ResponseError:  # a hosted Redis that keeps this to itself
        return None
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return (
        f"The Redis of REDIS_URL has the eviction policy {policy}, so that it may drop jobs when "
        "its memory is full. Set its maxmemory-policy to noeviction."
    )
