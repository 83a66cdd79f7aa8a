"""What comes next, encoded before it is clicked on.

Label Studio's own calls say where people are: a ``/predict`` without a context (a task was opened),
a click, a webhook (an annotation was created, tasks were imported), ``prewarm`` from callers that
send it. Each is a signal: encode this task, then the next ones. Which those are, Label Studio tells
only to the person it serves them to; the unlabelled tasks in the order of their ids are what it
serves in sequential labelling, and what its list shows. Random orders cannot be known.

Signals are taken in microseconds and never fail. One thread works on them while there are any, the
newest first, and gives way to clicks (turns.py); old ones fall off the end. With workers, it only
hands images over. An image that is encoded already costs a look into the store.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from backend import logs
from backend.encoding import Ahead
from backend.jobs import EncodeRequest
from backend.label_studio import LabelStudioClient
from backend.metrics import Metrics
from edgesam_core.errors import EdgeSamError

logger = logging.getLogger(__name__)

MOST_SIGNALS = 100
"""Signals that may wait; the oldest are dropped."""

MOST_BYTES = 32 * 1024 * 1024
"""For the addresses that wait; with ``data:`` URIs these are the images themselves."""

ASKED_AGAIN_S = 60.0
"""For which Label Studio is not asked again what follows the same task."""

_REQUEST_BYTES = 200  # beside the address, about
_MOST_REMEMBERED = 1000
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class PrefetchSettings:
    """How far ahead of the annotators images are encoded."""

    next_tasks: int = 5
    # Tasks after the one that somebody works on whose images are encoded ahead; 0: none but that
    # one.

    def __post_init__(self) -> None:
        """Refuse a number that is none, and one that only `precompute` should do."""
        if not 0 <= self.next_tasks <= 100:
            raise ValueError("next_tasks should lie in 0..100; precompute encodes whole projects.")


@dataclass(eq=False)
class _Signal:
    """What is still to be done for one signal: images, then the tasks that follow one."""

    project_id: int | None
    label_config: object
    images: deque[EncodeRequest]
    after: int | None
    # the task that the next ones follow; 0: the project's first ones; None: no others
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Weigh what came with the signal, and cut off what is too much for one."""
        self.nbytes = 0
        for count, image in enumerate(self.images):
            nbytes = len(image.uri) + _REQUEST_BYTES
            if self.nbytes + nbytes > MOST_BYTES:
                self.images = deque(islice(self.images, count))
                break
            self.nbytes += nbytes


class Prefetch:
    """Encodes ahead, in a thread that lives while there is work; safe between threads."""

    def __init__(
        self,
        images_of: Callable[[int | None, Sequence[Mapping[str, Any]], object], list[EncodeRequest]],
        encode_ahead: Callable[[EncodeRequest], Ahead],
        label_studio: LabelStudioClient,
        settings: PrefetchSettings,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing before the first signal.

        Args:
            images_of: Project, tasks and labelling config to the images that clicks would need.
            encode_ahead: Has one of them encoded.
            label_studio: Who knows the next tasks; not asked without a token.
            settings: How many of them.
            metrics: Where outcomes are counted.
            clock: Seconds, never going back.
        """
        self._images_of = images_of
        self._encode_ahead = encode_ahead
        self._label_studio = label_studio
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._signals: deque[_Signal] = deque()
        self._asked_at: dict[tuple[int, int], float] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._complaints = logs.Complaints(logger)

    # --- signals ---

    def opened(
        self, project_id: int | None, tasks: Sequence[Mapping[str, Any]], label_config: object
    ) -> None:
        """Tasks are about to be looked at: encode them, and what follows a single one."""
        after = tasks[0].get("id") if len(tasks) == 1 else None
        self._take(project_id, label_config, after, tasks)

    def worked_on(self, project_id: int | None, task_id: object, label_config: object) -> None:
        """Somebody clicked on a task or has finished it: encode what follows."""
        self._take(project_id, label_config, task_id)

    def imported(self, project_id: int | None, label_config: object) -> None:
        """A project has new tasks: encode its first ones."""
        self._take(project_id, label_config, 0)

    def close(self) -> None:
        """Take no more signals, and let the present image be finished for a few seconds."""
        with self._lock:
            self._is_closed = True
            self._signals.clear()
            thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE_S)

    def _take(
        self,
        project_id: int | None,
        label_config: object,
        after: object,
        tasks: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Note a signal; what has another form than Label Studio's says nothing."""
        try:
            images = deque(self._images_of(project_id, tasks, label_config) if tasks else ())
        except EdgeSamError as exc:
            logger.debug("nothing is encoded ahead: %s", exc.sentence)
            return
        given = len(images)
        signal = _Signal(project_id, label_config, images, None)
        self._metrics.prefetches.labels("dropped").inc(given - len(signal.images))
        with self._lock:
            if project_id is not None and isinstance(after, int):
                signal.after = after if self._is_to_be_asked((project_id, after)) else None
            if self._is_closed or (not images and signal.after is None):
                return
            self._signals.append(signal)
            self._drop_old()
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        """Begin to work; a process that has no more threads goes without."""
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        atexit.register(self.close)  # a process that ended in the middle of an encode would abort
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            self._complaints.warn("No thread could be started to encode images ahead.")

    def _is_to_be_asked(self, question: tuple[int, int]) -> bool:
        """Whether to ask Label Studio what follows a task; once in a while."""
        if not self._settings.next_tasks or not self._label_studio.has_token:
            return False
        now = self._clock()
        if now - self._asked_at.get(question, -ASKED_AGAIN_S) < ASKED_AGAIN_S:
            return False
        if len(self._asked_at) >= _MOST_REMEMBERED:
            self._asked_at.clear()
        self._asked_at[question] = now
        return True

    def _drop_old(self) -> None:
        """Forget the oldest signals where too much waits."""
        total = sum(signal.nbytes for signal in self._signals)
        while len(self._signals) > MOST_SIGNALS or total > MOST_BYTES:
            oldest = self._signals.popleft()
            total -= oldest.nbytes
            self._metrics.prefetches.labels("dropped").inc(len(oldest.images))

    # --- the thread ---

    def _work(self) -> None:
        """One step after the other, each for the newest signal, until nothing is left."""
        logs.begin("prefetch")
        while (signal := self._newest()) is not None:
            try:
                if signal.images:
                    self._encode(signal.images.popleft(), signal.project_id)
                else:
                    signal.images.extend(self._next(signal))
            except EdgeSamError as exc:
                self._complaints.warn(f"Not encoded ahead of a click: {exc.sentence}")
            except Exception:
                logger.exception("something went wrong while an image was encoded ahead")

    def _newest(self) -> _Signal | None:
        """The newest signal for which something is left to do; None ends the thread."""
        with self._lock:
            while self._signals:
                signal = self._signals[-1]
                if signal.images or signal.after is not None:
                    return signal
                self._signals.pop()
            self._thread = None
            atexit.unregister(self.close)
            return None

    def _encode(self, image: EncodeRequest, project_id: int | None) -> None:
        started = time.perf_counter()
        try:
            outcome = self._encode_ahead(image)
        except Exception:
            self._metrics.prefetches.labels("failed").inc()
            raise
        self._metrics.prefetches.labels(outcome).inc()
        milliseconds = (time.perf_counter() - started) * 1000
        level = logging.DEBUG if outcome == "warm" else logging.INFO
        logger.log(
            level, "prefetch project=%s task=%s: %s in %.0f ms",
            project_id, image.task_id, outcome, milliseconds,
        )  # fmt: skip

    def _next(self, signal: _Signal) -> list[EncodeRequest]:
        """The images of the next tasks; behind the last task come the first unlabelled ones."""
        after, signal.after, count = signal.after, None, self._settings.next_tasks
        assert after is not None, "this signal asks for no next tasks"
        assert signal.project_id is not None, "and would not know of which project"
        tasks = self._label_studio.tasks(signal.project_id, after=after, count=count)
        if len(tasks) < count and after:
            first = self._label_studio.tasks(signal.project_id, count=count - len(tasks))
            tasks += [task for task in first if task["id"] < after]
        return self._images_of(signal.project_id, tasks, signal.label_config)
