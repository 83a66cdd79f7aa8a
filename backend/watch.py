"""A thread that looks again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Watch:
    """Calls a function every few seconds in a thread of its own, until it is stopped."""

    def __init__(self, look: Callable[[], None], *, every_s: float, name: str) -> None:
        """Start nothing yet.

        Args:
            look: What is called; what it raises is logged and the watch goes on.
            every_s: Seconds from the end of one call to the begin of the next.
            name: Of the thread.
        """
        self._look = look
        self._every_s = every_s
        self._name = name
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Watch from now on; in the process that serves, since a fork has no threads."""
        with self._lock:
            if self._thread and self._thread.is_alive():
                return
            self._stopped.clear()
            self._thread = threading.Thread(target=self._watch, name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look no more; returns when the last call has ended."""
        with self._lock:
            self._stopped.set()
            if self._thread:
                self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look()
            except Exception:
                logger.exception("%s: this look was broken off", self._name)
            self._stopped.wait(self._every_s)
