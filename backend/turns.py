"""Who may encode now: clicks when there is room, what is encoded ahead only when no click wants to.

Each encode uses all the processors that it may, so encodes side by side make all of them slower. An
encode that has begun is finished, whoever comes: a click waits at most for that one.
"""

from __future__ import annotations

import threading


class Turns:
    """Turns of clicks and of encodes ahead of them; safe between threads."""

    def __init__(self, at_once: int) -> None:
        """All turns are free.

        Args:
            at_once: How many clicks may encode side by side.
        """
        self._at_once = at_once
        self._taken = 0
        self._clicks_waiting = 0
        self._changed = threading.Condition()

    def take(self, timeout_s: float) -> bool:
        """Take a turn for a click; False where none became free in time."""
        with self._changed:
            self._clicks_waiting += 1
            try:
                is_free = self._changed.wait_for(lambda: self._taken < self._at_once, timeout_s)
                self._taken += is_free
            finally:
                self._clicks_waiting -= 1
                self._changed.notify_all()
        return is_free

    def take_while_idle(self, timeout_s: float) -> bool:
        """Take a turn for what nobody waits for: once nobody encodes and no click waits to."""
        with self._changed:
            is_idle = self._changed.wait_for(
                lambda: not self._taken and not self._clicks_waiting, timeout_s
            )
            self._taken += is_idle
        return is_idle

    def give_back(self) -> None:
        """Let the next one encode."""
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()
