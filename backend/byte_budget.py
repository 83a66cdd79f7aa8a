"""A mapping in memory that forgets what was unused longest when it weighs too much.

The upper of the two tiers under embeddings, earlier logits and ways; store.py is the lower one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


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
