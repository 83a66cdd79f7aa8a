"""The images that each project is being clicked on, so that a new model has them when it begins."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace

from backend.jobs import EncodeRequest
from edgesam_core.errors import EdgeSamError

logger = logging.getLogger(__name__)

MOST_IMAGES = 8
"""Of each project, the last ones; encoding them is what a new model waits for."""

ACTIVE_S = 600.0
"""For which an image counts as being worked on."""

_MOST_PROJECTS = 100


class WorkingSet:
    """Remembers clicks' images for a while; safe between threads."""

    def __init__(
        self,
        encode: Callable[[EncodeRequest], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember nothing yet.

        Args:
            encode: Has an image encoded and waits for it.
            clock: Seconds, never going back.
        """
        self._encode = encode
        self._clock = clock
        self._seen: OrderedDict[int, OrderedDict[EncodeRequest, float]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, project_id: int | None, request: EncodeRequest) -> None:
        """Somebody clicked on this image."""
        if project_id is None:
            return
        with self._lock:
            images = self._seen.setdefault(project_id, OrderedDict())
            images[request] = self._clock()
            images.move_to_end(request)
            while len(images) > MOST_IMAGES:
                images.popitem(last=False)
            self._seen.move_to_end(project_id)
            while len(self._seen) > _MOST_PROJECTS:
                self._seen.popitem(last=False)

    def warm(self, project_id: int, version: str) -> Iterator[EncodeRequest]:
        """Have the project's images encoded for another version, one at each step.

        An image that cannot be had any more is passed over: whoever clicks on it is told.

        Yields:
            Each that is there now, the last that was clicked on first.
        """
        with self._lock:
            images = list(reversed(self._seen.get(project_id, OrderedDict()).items()))
        now = self._clock()
        for image, clicked_at in images:
            if now - clicked_at > ACTIVE_S:
                break
            request = replace(image, version=version)
            try:
                self._encode(request)
            except EdgeSamError as exc:
                logger.info("not encoded for version %s: %s", version, exc.sentence)
            else:
                yield request
