"""The image embedding, kept for the next click, and encoded once however many ask for it.

A click needs the embedding of its image; making one takes a hundred times as long as using it. So
embeddings are kept, as float16, up to a budget of bytes, the longest unused going first. Requests
for an image that is just being encoded wait for that one encode. Encodes of different images take
turns, since each uses all the processors that it may. All waits end: after `wait_s` the answer is
503 with a sentence.

The key is made from the image's bytes, the bundle's version and the pre-processing's version: a
swapped model never meets an old embedding, and a rollback finds its own. Proposals of a granularity
prior lie with the embedding and are weighed with it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import numpy as np

from edgesam_core import preprocess
from edgesam_core.encode import Embedding
from edgesam_core.errors import Unavailable

V = TypeVar("V")
Outcome = Literal["hit", "miss", "joined"]


@dataclass(frozen=True)
class EmbeddingSettings:
    """How many embeddings are kept and how long a click may wait for one."""

    cache_bytes: int = 128 * 1024 * 1024
    # Bytes of memory for embeddings; one takes 2 MB at input size 1024, 0.5 MB at 512, and at most
    # 0.2 MB more with the proposals of a granularity prior.
    wait_s: float = 30.0
    # Seconds that a click waits for its image to be encoded before it is answered with 503.

    def __post_init__(self) -> None:
        """Refuse a negative budget and an endless or impossible wait."""
        if self.cache_bytes < 0:
            raise ValueError("cache_bytes should not be negative.")
        if not 0 < self.wait_s <= 100:
            raise ValueError("wait_s should lie in 0..100: Label Studio gives up after 100 s.")


def embedding_key(image_key: str, bundle_version: str, *, with_proposals: bool = False) -> str:
    """The key of an image's embedding.

    Args:
        image_key: sha256 of the image's bytes.
        bundle_version: Of the bundle that encodes it.
        with_proposals: Whether it was made with the proposals of a granularity prior, which only
            those wait for who use them.
    """
    key = f"{image_key}:{bundle_version}:{preprocess.VERSION}"
    return f"{key}:proposals" if with_proposals else key


class ByteBudget(Generic[V]):
    """A thread-safe mapping that forgets what was unused longest when it weighs too much."""

    def __init__(self, budget_bytes: int) -> None:
        """Start empty.

        Args:
            budget_bytes: For all values together; a value larger than that is not kept.
        """
        self._budget_bytes = budget_bytes
        self._items: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.used_bytes = 0

    def get(self, key: str) -> V | None:
        """The value, which now is the last to be forgotten."""
        with self._lock:
            item = self._items.get(key)
            if item is None:
                return None
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: str, value: V, size_bytes: int) -> None:
        """Keep a value, and forget others for it if need be."""
        with self._lock:
            _, old_bytes = self._items.pop(key, (None, 0))
            self._items[key] = (value, size_bytes)
            self.used_bytes += size_bytes - old_bytes
            while self.used_bytes > self._budget_bytes:
                _, (_, freed) = self._items.popitem(last=False)
                self.used_bytes -= freed

    def __len__(self) -> int:
        """How many values are kept."""
        return len(self._items)


class EmbeddingStore:
    """Embeddings by key; safe to share between threads."""

    def __init__(self, settings: EmbeddingSettings, *, encodes_at_once: int = 1) -> None:
        """Start empty.

        Args:
            settings: Budget and patience.
            encodes_at_once: How many images may be encoded side by side; with all processors
                given to each encode, more than one makes all of them slower.
        """
        self._settings = settings
        self._kept: ByteBudget[Embedding] = ByteBudget(settings.cache_bytes)
        self._turns = threading.BoundedSemaphore(encodes_at_once)
        self._in_flight: dict[str, Future[Embedding]] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> Embedding | None:
        """The embedding, if it is kept."""
        kept = self._kept.get(key)
        return None if kept is None else _widened(kept)

    def get_or_encode(self, key: str, encode: Callable[[], Embedding]) -> tuple[Embedding, Outcome]:
        """The embedding, made by `encode` if neither kept nor being made.

        Args:
            key: From `embedding_key`.
            encode: Reads and encodes the image; called at most once at a time for a key.

        Returns:
            The embedding (rounded to float16, so that the first click on an image and all later
            ones start from the same numbers), and how it was found.

        Raises:
            Unavailable: The wait took too long.
            EdgeSamError: Whatever `encode` raised, for all that waited for it.
        """
        kept = self.get(key)
        if kept is not None:
            return kept, "hit"
        with self._lock:
            flight = self._in_flight.get(key)
            is_leader = flight is None
            if flight is None:
                flight = self._in_flight[key] = Future()
        if is_leader:
            self._lead(key, flight, encode)
        try:
            embedding = flight.result(timeout=self._settings.wait_s)
        except TimeoutError as exc:
            raise _too_busy() from exc
        return _widened(embedding), "miss" if is_leader else "joined"

    def _lead(self, key: str, flight: Future[Embedding], encode: Callable[[], Embedding]) -> None:
        """Encode when it is this image's turn; result or error go into the flight."""
        try:
            if not self._turns.acquire(timeout=self._settings.wait_s):
                raise _too_busy()
            try:
                # Between the look-up and taking the lead another leader may have finished.
                embedding = self._kept.get(key) or _narrowed(encode())
            finally:
                self._turns.release()
            self._kept.put(key, embedding, embedding.nbytes)
            flight.set_result(embedding)
        except BaseException as exc:
            flight.set_exception(exc)
            if not isinstance(exc, Exception):
                raise
        finally:
            with self._lock:
                del self._in_flight[key]


def _too_busy() -> Unavailable:
    return Unavailable(
        "The image could not be encoded in time, since other images are before it. Click again in "
        "a moment."
    )


def _narrowed(embedding: Embedding) -> Embedding:
    return replace(embedding, image_embedding=embedding.image_embedding.astype(np.float16))


def _widened(embedding: Embedding) -> Embedding:
    return replace(embedding, image_embedding=embedding.image_embedding.astype(np.float32))
