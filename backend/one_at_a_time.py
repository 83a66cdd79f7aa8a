"""A lock for what may fail slowly: who waits for it meanwhile is told so, and does not try again.

Ten clicks on a picture whose host hangs would otherwise wait for its time limit one after the
other, each with a thread of the server's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from edgesam_core.errors import EdgeSamError


class OneAtATime:
    """Lets in one thread at a time, and none that was waiting while another failed inside."""

    def __init__(self) -> None:
        """Nobody is inside."""
        self._lock = threading.Lock()
        self._failures = 0
        self._failed: Callable[[], EdgeSamError] = EdgeSamError

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Go in when it is this thread's turn.

        Raises:
            EdgeSamError: What another thread failed with while this one waited.
        """
        failures = self._failures
        with self._lock:
            if self._failures > failures:
                raise self._failed()
            try:
                yield
            except EdgeSamError as exc:
                self._failures += 1
                # Not the error itself, whose traceback holds on to all that led to it.
                self._failed = partial(type(exc), exc.sentence, detail=exc.detail)
                raise
