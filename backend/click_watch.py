"""Whether an image is being encoded for somebody on this machine: what pauses training.

Two places tell. Web processes that encode hold a turn of the machine (machine_turns.py). Clicks
that workers answer are jobs of the queue `interactive`, queued or begun; they count while some
worker is alive to answer them.
"""

from __future__ import annotations

import logging
import time

from redis.exceptions import RedisError
from rq import Queue
from rq.serializers import JSONSerializer

from backend.logs import Complaints
from backend.machine_turns import MachineTurns
from backend.queues import INTERACTIVE, QueueSettings, connect, listening, redis_reason, redis_time
from backend.store import StoreSettings

_REDIS_TIMEOUT_S = 0.5
_REDIS_PAUSE_S = 5.0  # for which a Redis that failed is not asked again


class ClickWatch:
    """Looks for clicks that wait; one thread's."""

    def __init__(
        self, store: StoreSettings, queues: QueueSettings, encodes_at_once: int = 1
    ) -> None:
        """Look at nothing yet.

        Args:
            store: Where the turns of the machine's web processes lie.
            queues: Where Redis is, if there is one.
            encodes_at_once: How many turns the machine has.
        """
        folder = store.cache_dir and store.cache_dir / "turns"
        self._turns = MachineTurns(folder, encodes_at_once)
        self._silent_until = 0.0
        self._complaints = Complaints(logging.getLogger(__name__))
        self._queue: Queue | None = None
        if queues.redis_url is not None:
            redis = connect(queues.redis_url, timeout_s=_REDIS_TIMEOUT_S)
            self._queue = Queue(INTERACTIVE, connection=redis, serializer=JSONSerializer)

    def is_anybody_waiting(self) -> bool:
        """Whether training should stand still now; never raises."""
        return self._turns.is_somebody_encoding() or self._is_job_waiting()

    def _is_job_waiting(self) -> bool:
        if self._queue is None or time.monotonic() < self._silent_until:
            return False
        redis = self._queue.connection
        try:
            begun = self._queue.started_job_registry.key
            is_waiting = redis.llen(self._queue.key) or redis.zcount(
                begun, redis_time(redis), "+inf"
            )
            return bool(is_waiting and listening(redis))
        except RedisError as exc:
            self._silent_until = time.monotonic() + _REDIS_PAUSE_S
            self._complaints.warn(
                f"The Redis of REDIS_URL does not tell of clicks ({redis_reason(exc)}): the "
                "training goes on beside them at low priority."
            )
            return False
