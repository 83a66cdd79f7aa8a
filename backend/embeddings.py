"""The image embedding, kept for the next click, and encoded once however many ask for it.

A click needs the embedding of its image; making one takes a hundred times as long as using it. So
embeddings are kept as float16 in two tiers: the memory of this process, up to a budget of bytes,
over a store that all processes share (store.py) and that survives them. Requests for an image that
is just being encoded wait for that one encode. Encodes of different images take turns, since each
uses all the processors that it may. All waits end: after `wait_s` the answer is 503, with a
sentence.

The key is made from the image's bytes, the bundle's version and the pre-processing's version: a
swapped model never meets an old embedding, and a rollback finds its own. Proposals of a granularity
prior lie with the embedding and are weighed with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np

from backend.byte_budget import ByteBudget
from backend.embedding_bytes import bytes_to_embedding, embedding_to_bytes
from backend.logs import Complaints
from backend.machine_turns import MachineTurns
from backend.store import NO_STORE, Store
from backend.turns import Turns
from edgesam_core import preprocess
from edgesam_core.encode import Embedding
from edgesam_core.errors import Unavailable

Outcome = Literal["hit", "miss", "joined"]

_SHARED_AGAIN_S = 60.0


@dataclass(frozen=True)
class EmbeddingSettings:
    """How many embeddings are kept and how long a click may wait for one."""

    cache_bytes: int = 128 * 1024 * 1024
    # Bytes of memory for embeddings; one takes 2 MB at input size 1024, 0.5 MB at 512, and at most
    # 0.2 MB more with the proposals of a granularity prior.
    wait_s: float = 30.0
    # Seconds that a click waits for its image to be encoded, and then for its turn to be decoded,
    # before it is answered with 503.

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


def crop_key(key: str, crop_xyxy: Sequence[int]) -> str:
    """The key of the embedding of a part of an image.

    Args:
        key: Of the whole image's.
        crop_xyxy: [4] its edges in pixels of the original.
    """
    return f"{key}:crop:{','.join(map(str, crop_xyxy))}"


@dataclass
class _Kept:
    """An embedding in float16 in memory, and when the shared store last had it (monotonic)."""

    embedding: Embedding
    shared_at: float


class EmbeddingStore:
    """Embeddings by key, in memory over the shared store; safe to share between threads."""

    def __init__(
        self,
        settings: EmbeddingSettings,
        shared: Store = NO_STORE,
        *,
        encodes_at_once: int = 1,
        machine: MachineTurns | None = None,
    ) -> None:
        """Start with an empty memory.

        Args:
            settings: Budget of the memory, and patience.
            shared: What all processes share; `NO_STORE` for memory alone.
            encodes_at_once: How many images may be encoded side by side; with all processors
                given to each encode, more than one makes all of them slower.
            machine: The turns of all processes here; None where this one is alone.
        """
        self._settings = settings
        self._memory: ByteBudget[_Kept] = ByteBudget(settings.cache_bytes)
        self._shared = shared
        self._turns = Turns(encodes_at_once, machine)
        self._in_flight: dict[str, Future[Embedding]] = {}
        self._lock = threading.Lock()
        self._complaints = Complaints(logging.getLogger(__name__))

    def get(self, key: str) -> Embedding | None:
        """The embedding, if memory or the shared store has it."""
        kept = self._find(key)
        return None if kept is None else _widened(kept)

    def has(self, key: str) -> bool:
        """Whether memory or the shared store has it; nothing is read."""
        return self._memory.get(key) is not None or self._shared.has(key)

    def encode_ahead(self, key: str, encode: Callable[[], Embedding]) -> bool:
        """Encode an image that nobody waits for yet, once no click encodes or waits to.

        It leads no click into waiting: until its turn comes it is nothing to join.

        Args:
            key: From `embedding_key`.
            encode: As for `get_or_encode`.

        Returns:
            Whether it was encoded here; False where somebody else was quicker.

        Raises:
            Unavailable: Clicks left no turn in time.
            EdgeSamError: Whatever `encode` raised.
        """
        if not self._turns.take_while_idle(self._settings.wait_s):
            raise _too_busy()
        try:
            flight, is_leader = self._board(key)
            if not is_leader:
                return False
            outcome = self._lead(key, flight, lambda: self._encode(key, encode))
        finally:
            self._turns.give_back()
        return self._share(key, flight.result(), outcome)

    def get_or_encode(
        self,
        key: str,
        encode: Callable[[], Embedding],
        *,
        ask_worker: Callable[[], bool] | None = None,
        given_up: Future[NoReturn] | None = None,
    ) -> tuple[Embedding, Outcome]:
        """The embedding, made by a worker or by `encode` if neither kept nor being made.

        Args:
            key: From `embedding_key`.
            encode: Reads and encodes the image; called at most once at a time for a key.
            ask_worker: Has a worker encode it, and waits: True if the shared store has it now,
                False if it is to be encoded here. Called before a turn is taken here, at most once
                at a time for a key.
            given_up: Done, with the error to raise, once the caller waits in vain. It ends the wait
                for what another caller makes; whoever makes an embedding makes it for all.

        Returns:
            The embedding (rounded to float16, so that the first click on an image and all later
            ones start from the same numbers), and how it was found.

        Raises:
            Unavailable: The wait took too long.
            EdgeSamError: Whatever `encode` raised, for all that waited for it; or what `given_up`
                holds.
        """
        kept = self._from_memory(key)
        if kept is not None:
            return _widened(kept), "hit"
        flight, is_leader = self._board(key)
        outcome: Outcome = "joined"
        if is_leader:
            outcome = self._lead(key, flight, lambda: self._make(key, encode, ask_worker))
        awaited: list[Future[Any]] = [flight] if given_up is None else [flight, given_up]
        wait(awaited, self._settings.wait_s, FIRST_COMPLETED)
        if not flight.done():
            if given_up is not None and given_up.done():
                given_up.result()
            raise _too_busy()
        embedding = flight.result()
        self._share(key, embedding, outcome)
        return _widened(embedding), outcome

    def _board(self, key: str) -> tuple[Future[Embedding], bool]:
        """The flight that makes an embedding, and whether the caller leads it."""
        with self._lock:
            flight = self._in_flight.get(key)
            if flight is not None:
                return flight, False
            flight = self._in_flight[key] = Future()
            return flight, True

    def _share(self, key: str, embedding: Embedding, outcome: Outcome) -> bool:
        """Put what was encoded here into the shared store; whether it was.

        After those who wait for the same image were let go: they do not wait for the disk.
        """
        if outcome == "miss":
            self._shared.put(key, embedding_to_bytes(embedding))
        return outcome == "miss"

    def _make(
        self,
        key: str,
        encode: Callable[[], Embedding],
        ask_worker: Callable[[], bool] | None,
    ) -> tuple[Embedding, Outcome]:
        """Find the embedding or have it made, for a click."""
        # Between the look-up and taking the lead another leader may have finished.
        embedding = self._find(key)
        if embedding is not None:
            return embedding, "hit"
        if ask_worker is not None and ask_worker():
            embedding = self._find(key)
            if embedding is not None:
                return embedding, "joined"
            self._complaints.warn(
                "A worker encoded an image that is not in the store here. Give servers and "
                "workers the same EDGESAM_CACHE_DIR or EDGESAM_STORE_URL."
            )
        return self._encode_in_turn(key, encode)

    def _lead(
        self,
        key: str,
        flight: Future[Embedding],
        make: Callable[[], tuple[Embedding, Outcome]],
    ) -> Outcome:
        """Make the embedding; it or an error goes into the flight."""
        outcome: Outcome = "hit"
        try:
            embedding, outcome = make()
            flight.set_result(embedding)
        except BaseException as exc:
            flight.set_exception(exc)
            if not isinstance(exc, Exception):
                raise
        finally:
            with self._lock:
                del self._in_flight[key]
        return outcome

    def _encode_in_turn(
        self, key: str, encode: Callable[[], Embedding]
    ) -> tuple[Embedding, Outcome]:
        """Encode when it is this image's turn."""
        if not self._turns.take(self._settings.wait_s):
            raise _too_busy()
        try:
            return self._encode(key, encode)
        finally:
            self._turns.give_back()

    def _encode(self, key: str, encode: Callable[[], Embedding]) -> tuple[Embedding, Outcome]:
        """Encode, with the turn in hand, unless another process was quicker."""
        embedding = self._find(key)
        if embedding is not None:
            return embedding, "joined"
        embedding = _narrowed(encode())
        self._memory.put(key, _Kept(embedding, time.monotonic()), embedding.nbytes)
        return embedding, "miss"

    def _find(self, key: str) -> Embedding | None:
        """The embedding in float16, from memory or else from the shared store."""
        embedding = self._from_memory(key)
        if embedding is not None:
            return embedding
        data = self._shared.get(key)
        embedding = None if data is None else bytes_to_embedding(data)
        if embedding is not None:
            self._memory.put(key, _Kept(embedding, time.monotonic()), embedding.nbytes)
        return embedding

    def _from_memory(self, key: str) -> Embedding | None:
        """The embedding, if memory has it; once in a while the shared store is told of its use.

        Otherwise what is used most would be the longest unused there, and what a store has lost
        (an evicted entry, a Redis that was restarted) would be lost to all other processes.
        """
        kept = self._memory.get(key)
        if kept is None:
            return None
        now = time.monotonic()
        if now - kept.shared_at > _SHARED_AGAIN_S:
            kept.shared_at = now
            if not self._shared.has(key):
                self._shared.put(key, embedding_to_bytes(kept.embedding))
        return kept.embedding


def _too_busy() -> Unavailable:
    return Unavailable(
        "The image could not be encoded in time, since other images are before it. Click again in "
        "a moment."
    )


def _narrowed(embedding: Embedding) -> Embedding:
    return replace(embedding, image_embedding=embedding.image_embedding.astype(np.float16))


def _widened(embedding: Embedding) -> Embedding:
    return replace(embedding, image_embedding=embedding.image_embedding.astype(np.float32))
