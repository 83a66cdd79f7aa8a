"""Who may encode now: clicks when there is room, what is encoded ahead only when no click wants to.

Each encode uses all the processors that it may, so encodes side by side make all of them slower. An
encode that has begun is finished, whoever comes: a click waits at most for that one. Where several
web processes share the processors, a turn here is a turn of the machine, too (machine_turns.py).
"""

from __future__ import annotations

import threading
import time

from backend.machine_turns import MachineTurns

_LOOK_AGAIN_S = 0.1  # ten times as seldom as a click: those of other processes come first, too


class Turns:
    """Turns of clicks and of encodes ahead of them; safe between threads."""

    def __init__(self, at_once: int, machine: MachineTurns | None = None) -> None:
        """All turns are free.

        Args:
            at_once: How many clicks may encode side by side.
            machine: The turns of all processes here; None where this one is alone.
        """
        self._at_once = at_once
        self._machine = machine or MachineTurns(None, at_once)
        self._taken = 0
        self._clicks_waiting = 0
        self._changed = threading.Condition()

    def take(self, timeout_s: float) -> bool:
        """Take a turn for a click; False where none became free in time."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._clicks_waiting += 1
            try:
                is_free = self._changed.wait_for(lambda: self._taken < self._at_once, timeout_s)
                self._taken += is_free
            finally:
                self._clicks_waiting -= 1
                self._changed.notify_all()
        if not is_free:
            return False
        if not self._machine.take(deadline - time.monotonic()):
            self._let_go()
            return False
        return True

    def take_while_idle(self, timeout_s: float) -> bool:
        """Take a turn for what nobody waits for: once nobody encodes and no click waits to."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            with self._changed:
                if not self._changed.wait_for(
                    lambda: not self._taken and not self._clicks_waiting, left_s
                ):
                    return False
                self._taken += 1
            if self._machine.take_now():
                return True
            self._let_go()  # a click here must not wait behind what another process does
            time.sleep(_LOOK_AGAIN_S)
        return False

    def give_back(self) -> None:
        """Let the next one encode."""
        self._machine.give_back()
        self._let_go()

    def _let_go(self) -> None:
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()
