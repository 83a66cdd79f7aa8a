"""Entries in a Redis, for machines that have no disk in common.

How much it keeps and what goes first is Redis's own part (``maxmemory``, ``maxmemory-policy
allkeys-lru``). A Redis that fails or is slow is left alone for some seconds, so that it costs one
click a moment, not every click; until then nothing is found and nothing is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from backend.logs import Complaints
from backend.sealed import is_sealed, seal

logger = logging.getLogger(__name__)

R = TypeVar("R")

_PREFIX = "edgesam:"
_TIMEOUT_S = 1.0
_LEFT_ALONE_S = 5.0


class RedisStore:
    """Bytes by key in Redis; connects at the first call, in whichever process makes it."""

    def __init__(self, url: str) -> None:
        """Connect to nothing yet.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``.
        """
        self._redis = Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),  # a connection from before a restart of Redis is dead
        )
        self._left_alone_until = 0.0
        self._complaints = Complaints(logger)

    def get(self, key: str) -> bytes | None:
        """The value, or None; a damaged entry is removed."""
        entry = self._ask(lambda: self._redis.get(_PREFIX + key))
        if not isinstance(entry, bytes):
            return None
        line, end, value = entry.partition(b"\n")
        if is_sealed(line + end, key, value):
            return value
        self._complaints.warn("A damaged entry of the store in Redis was removed.")
        self._ask(lambda: self._redis.delete(_PREFIX + key))
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keep a value under its key."""
        self._ask(lambda: self._redis.set(_PREFIX + key, seal(key, value) + value))

    def has(self, key: str) -> bool:
        """Whether there is an entry, which is not read; now the last to be forgotten."""
        return bool(self._ask(lambda: self._redis.touch(_PREFIX + key)))

    def _ask(self, call: Callable[[], R]) -> R | None:
        """What Redis answers; None where it fails, and for a while after it was out of reach."""
        if time.monotonic() < self._left_alone_until:
            return None
        try:
            return call()
        except RedisError as exc:
            if not isinstance(exc, ResponseError):  # such as: no memory left for a new entry
                self._left_alone_until = time.monotonic() + _LEFT_ALONE_S
            self._complaints.warn(f"The store in Redis fails ({type(exc).__name__}).")
            return None
