"""The clicks that are being answered: how many may be, and which of them nobody wants any more.

Label Studio's page sends every click at once with all pending prompts of its object, and shows only
the answer to the newest. So of four quick clicks on a new image, which all wait for its embedding,
only the last is worth a decode. A click is superseded by a newer one on the same picture that holds
all its prompt ids and more. Ids are made by the page at random: two annotators on one task have
different ones and never supersede each other, and neither does a prompt that was moved (same ids),
a click on another picture of the task, or one after the cross or the tick (new ids).

A click that waits or is decoded holds one of the server's threads. Beyond `at_most` of them a
click is refused at once, so that Label Studio's health check always finds a thread that is free. Of
those that have their embedding, as many are decoded at a time as there are processors: all at once
they would be ready no sooner, and health checks would wait three times as long for their share of
the interpreter.

A click that waits hears of a newer one in its own process at once, and of one that reached another
process (newest_click.py) when its turn has come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from backend.newest_click import NewestClicks
from backend.store import NO_STORE, Store
from edgesam_core.errors import Superseded, Unavailable
from edgesam_core.session import processors


@dataclass(eq=False)
class Click:
    """A click that is being answered."""

    picture: Hashable
    region_ids: frozenset[str]
    at_s: float = field(default_factory=time.monotonic)
    overtaken: Future[NoReturn] = field(default_factory=Future)
    # raises `Superseded` from the moment on when nobody wants the answer any more

    def check(self) -> None:
        """Go on only if somebody still wants the answer.

        Raises:
            Superseded: Nobody does.
        """
        if self.overtaken.done():
            self.overtaken.result()


class Clicks:
    """The clicks that are being answered by this process; safe between threads."""

    def __init__(self, at_most: int, *, wait_s: float = 30.0, shared: Store = NO_STORE) -> None:
        """Begin with none.

        Args:
            at_most: How many may wait or be decoded at a time.
            wait_s: Seconds that one waits for its turn to be decoded.
            shared: What the web processes share.
        """
        self._at_most = at_most
        self._wait_s = wait_s
        self._answering: list[Click] = []
        self._newest = NewestClicks(shared)
        self._turns = threading.Semaphore(processors())
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, click: Click) -> Iterator[None]:
        """Decode when it is this click's turn, if it is still wanted then.

        Raises:
            Superseded: Nobody wants the answer any more.
            Unavailable: Its turn did not come in time.
        """
        if not self._turns.acquire(timeout=self._wait_s):
            raise Unavailable(
                "The mask could not be made in time, since other clicks are before it. Click again "
                "in a moment."
            )
        try:
            click.check()
            if _is_superseded(click.region_ids, self._newest.since(click.picture, click.at_s)):
                raise Superseded
            yield
        finally:
            self._turns.release()

    @contextmanager
    def answering(self, picture: Hashable, region_ids: frozenset[str]) -> Iterator[Click]:
        """Answer a click, unless there are too many already.

        Args:
            picture: What was clicked on: task, image tag, page.
            region_ids: Label Studio's ids of the prompts; none where a prompt came without, and
                then the click neither supersedes nor is superseded.

        Raises:
            Unavailable: As many clicks are being answered as may be.
        """
        click = Click(picture, region_ids)
        with self._lock:
            if len(self._answering) >= self._at_most:
                raise Unavailable(
                    "Too many clicks are waiting for their masks. Click again in a moment.",
                    detail=f"{self._at_most} are being answered",
                )
            for older in self._answering:
                is_same = older.picture == picture and not older.overtaken.done()
                if is_same and _is_superseded(older.region_ids, region_ids):
                    older.overtaken.set_exception(Superseded())
            self._answering.append(click)
        if region_ids:
            self._newest.tell(picture, region_ids, click.at_s)
        try:
            yield click
        finally:
            with self._lock:
                self._answering.remove(click)


def _is_superseded(older: frozenset[str], newer: frozenset[str]) -> bool:
    return bool(older) and older < newer
