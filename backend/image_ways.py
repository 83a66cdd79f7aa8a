"""The way from an address to an image's bytes: where it led, under which ETag, checked when.

Ways lie in the shared store beside the embeddings, so that a click on an image that another process
or machine has encoded fetches nothing. An address is believed for ten minutes to lead to the same
bytes; after that its host is asked (images.py). Ways are few bytes and every click needs one, so
they also stay in this process's memory: the cheapest click asks nobody.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass

from backend.byte_budget import ByteBudget
from backend.store import Store

BELIEVED_S = 600.0
"""How long an address is taken to mean the same bytes without asking its host again."""

_MEMORY_BYTES = 1024 * 1024  # some five thousand ways


@dataclass(frozen=True)
class Way:
    """Where an address led: to which bytes, under which ETag, checked when."""

    sha256: str
    etag: str | None
    checked_utc: float
    # Seconds since the epoch: comparable between processes and after a restart.

    def __post_init__(self) -> None:
        """Refuse what only a damaged entry can say.

        Raises:
            ValueError: With the name of the field.
        """
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 must be 64 hexadecimal digits.")
        if not isinstance(self.etag, str | None):
            raise ValueError("etag must be text or None.")

    def is_believed(self, now_utc: float) -> bool:
        """Whether it holds without asking; never when the clock was set back behind it."""
        return 0 <= now_utc - self.checked_utc < BELIEVED_S


class Ways:
    """Ways by address, in memory over the shared store; thread-safe."""

    def __init__(self, shared: Store) -> None:
        """Know what the shared store knows."""
        self._shared = shared
        self._memory: ByteBudget[Way] = ByteBudget(_MEMORY_BYTES)

    def get(self, name: str, now_utc: float) -> Way | None:
        """Where the address ``name`` led last time, if that is remembered.

        Args:
            name: The address without its signature.
            now_utc: Seconds since the epoch. A way in memory that is no longer believed gives
                place to a younger one, if another process has left it in the store.
        """
        way = self._memory.get(_key(name))
        if way is not None and way.is_believed(now_utc):
            return way
        return self._from_store(name) or way

    def remember(self, name: str, way: Way) -> None:
        """Keep where the address ``name`` led."""
        record = json.dumps(asdict(way)).encode()
        self._memory.put(_key(name), way, len(record))
        self._shared.put(_key(name), record)

    def _from_store(self, name: str) -> Way | None:
        record = self._shared.get(_key(name))
        if record is None:
            return None
        try:
            fields = json.loads(record)
            way = Way(str(fields["sha256"]), fields["etag"], float(fields["checked_utc"]))
        except (ValueError, TypeError, KeyError):  # another version of this file wrote it
            return None
        self._memory.put(_key(name), way, len(record))
        return way


def _key(name: str) -> str:
    return f"way:{hashlib.sha256(name.encode()).hexdigest()}"
