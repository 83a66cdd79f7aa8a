"""Methods of a running service that are counted, or held up, while they go on working."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def hold_up(target: Any, name: str) -> threading.Event:
    """Let the calls of a method wait until the event is set."""
    method, let_go = getattr(target, name), threading.Event()

    def waiting(*args: Any, **options: Any) -> Any:
        let_go.wait(20)
        return method(*args, **options)

    setattr(target, name, waiting)
    return let_go


def count_calls(target: Any, name: str) -> Callable[[], int]:
    """Count the calls of a method from now on."""
    method, calls, lock = getattr(target, name), [0], threading.Lock()

    def counting(*args: Any, **options: Any) -> Any:
        with lock:
            calls[0] += 1
        return method(*args, **options)

    setattr(target, name, counting)
    return lambda: calls[0]
