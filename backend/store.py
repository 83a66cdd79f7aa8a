"""Bytes by key, kept for all processes: what one of them has worked out, none does again.

The lower of the two tiers under embeddings (embeddings.py), earlier logits (refinement.py) and the
ways from addresses to images (image_ways.py). It is a cache: whatever it holds may be gone at any
time, and nothing is believed that does not carry its own key and checksum (sealed.py). A directory
by default; Redis, for machines without a common disk, only where ``EDGESAM_STORE_URL`` names one.

Keys are text made from content: the sha256 of the image's bytes, the bundle's version and the
pre-processing's. No key ever gets another value, so no entry is ever out of date: a swapped model
asks for other keys, and a rollback finds its own. (Only a way may change, and says how old it is.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from backend.directory_store import DirectoryStore
from backend.redis_store import RedisStore


class Store(Protocol):
    """Bytes by key, shared by processes and threads.

    Nothing here raises for a failing disk or Redis: `get` answers None and `put` does nothing; the
    log tells about each kind of failure once in a while.
    """

    def get(self, key: str) -> bytes | None:
        """The value, whole and of this very key, or None; now the last to be forgotten."""

    def put(self, key: str, value: bytes) -> None:
        """Keep a value: whole or not at all, also when the process is killed meanwhile."""

    def has(self, key: str) -> bool:
        """Whether there is an entry; now the last to be forgotten.

        It is not read, so `get` may still find it damaged.
        """


class NoStore:
    """Keeps nothing; for one process without a folder."""

    def get(self, key: str) -> bytes | None:
        """None."""

    def put(self, key: str, value: bytes) -> None:
        """Forget it."""

    def has(self, key: str) -> bool:
        """False."""
        return False


NO_STORE = NoStore()


@dataclass(frozen=True)
class StoreSettings:
    """Where processes share what they worked out."""

    cache_dir: Path | None = None
    # Folder for what may be lost: fetched images in `images/`, embeddings, earlier logits and ways
    # to images in `store/`. Web processes and workers of one machine share it. Without one, each
    # process has its memory only.
    store_bytes: int = 4 * 1024**3
    # Bytes of disk for `store/`, the longest unused go first; 0 keeps none. An embedding takes 2 MB
    # at input size 1024, 0.5 MB at 512.
    url: str | None = field(default=None, repr=False)
    # Redis in place of `store/`, for machines without a common disk: `redis://host:6379/0`. Set its
    # `maxmemory`, and `maxmemory-policy allkeys-lru`; jobs (`REDIS_URL`) need another Redis.

    def __post_init__(self) -> None:
        """Refuse a negative budget and an address that is not Redis's."""
        if self.store_bytes < 0:
            raise ValueError("store_bytes should not be negative.")
        if self.url and not self.url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("url should begin with redis://, rediss:// or unix://.")


def open_store(settings: StoreSettings) -> Store:
    """The shared store that the settings ask for; nothing is read or connected yet."""
    if settings.url:
        return RedisStore(settings.url)
    if settings.cache_dir and settings.store_bytes:
        return DirectoryStore(settings.cache_dir / "store", settings.store_bytes)
    return NO_STORE
