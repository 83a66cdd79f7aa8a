"""The effort meter: how many prompts a region takes, and how much of a suggestion is submitted.

A webhook is taken in microseconds. One thread then counts it (effort_count.py) and keeps the count
(effort_rows.py); while nothing else waits, what was changed is suggested again (effort_replay.py)
and compared with what was submitted. So a count is there at once, its IoU a little later. Webhooks
that never came, and IoUs that were lost with a process, are made up for by effort_rebuild.py.

Read per label and week for a project, and per version for `/metrics` (effort_table.py).
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from backend import logs
from backend.effort_count import Accepted, count_annotation
from backend.effort_events import ANNOTATIONS_DELETED, TASKS_DELETED, Event, read_event
from backend.effort_rows import AnnotationEffort, EffortRows
from backend.effort_table import EffortRow, Total, by_version, by_week
from backend.label_config import LabelConfig, parse_label_config
from edgesam_core.errors import EdgeSamError

logger = logging.getLogger(__name__)

MOST_BYTES = 64 * 1024 * 1024
"""Of annotations that wait to be counted."""

MOST_REPLAYS = 200
"""Annotations that wait for their IoU; of more than that the oldest stay without."""

_PATIENCE_S = 5.0


@dataclass(frozen=True)
class _Unfinished:
    """A count that still lacks IoUs."""

    project_id: int
    effort: AnnotationEffort
    changed: list[Accepted]


class Effort:
    """Counts what annotators do, in a thread that lives while there is work."""

    def __init__(
        self, rows: EffortRows, iou_of: Callable[[Accepted], float], *, max_pixels: int
    ) -> None:
        """Start nothing before the first webhook.

        Args:
            rows: Where counts are kept.
            iou_of: Makes a suggestion again and compares it.
            max_pixels: Of the largest region that is looked at.
        """
        self.rows = rows
        self._iou_of = iou_of
        self._max_pixels = max_pixels
        self._events: deque[Event] = deque()
        self._unfinished: deque[_Unfinished] = deque(maxlen=MOST_REPLAYS)
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._complaints = logs.Complaints(logger)

    # --- what happened ---

    def webhook(self, action: object, body: Mapping[str, Any]) -> None:
        """Take note of what Label Studio tells; never raises, and does nothing that takes time."""
        event = read_event(action, body) if self.rows.are_kept else None
        if event is None:
            return
        with self._lock:
            if sum(waiting.nbytes for waiting in self._events) + event.nbytes > MOST_BYTES:
                self._complaints.warn(
                    "Too many annotations at a time: some are not counted. Afterwards, run "
                    f"python -m backend effort {event.project_id}."
                )
                return
            self._events.append(event)
            if self._thread is None:
                self._start()

    def count(
        self,
        project_id: int,
        annotation: Mapping[str, Any],
        task: Mapping[str, Any],
        config: LabelConfig | None,
    ) -> tuple[AnnotationEffort, list[Accepted]]:
        """Count an annotation, without the IoUs that take time.

        Returns:
            What was noted, and what those IoUs are of.

        Raises:
            OSError: The count could not be kept.
        """
        effort, changed = count_annotation(annotation, task, config, max_pixels=self._max_pixels)
        self.rows.note(project_id, effort)
        return effort, changed

    def finish(
        self, project_id: int, effort: AnnotationEffort, changed: Iterable[Accepted]
    ) -> AnnotationEffort:
        """Make changed suggestions again, and note the IoUs.

        Raises:
            OSError: They could not be kept.
        """
        regions = list(effort.regions)
        for accepted in changed:
            try:
                iou = self._iou_of(accepted)
            except EdgeSamError as exc:
                logger.info("effort: a suggestion could not be made again: %s", exc.sentence)
                continue
            regions[accepted.place] = replace(regions[accepted.place], iou=round(iou, 4))
        finished = replace(effort, regions=tuple(regions))
        if finished != effort:
            self.rows.note(project_id, finished)
        return finished

    def close(self) -> None:
        """Count what waits, and leave the IoUs."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE_S)

    # --- what it comes to ---

    def weeks(self, project_id: int) -> list[EffortRow]:
        """A project's effort per week, label and version; the newest week first."""
        return by_week(self._of(project_id))

    def versions(self) -> dict[str, Total]:
        """The effort of all projects per version, and `BY_HAND`."""
        return by_version(e for project_id in self.rows.projects() for e in self._of(project_id))

    def _of(self, project_id: int) -> list[AnnotationEffort]:
        """What is known of a project; nothing where nothing can be read."""
        if not self.rows.are_kept:
            return []
        try:
            return self.rows.of(project_id)
        except OSError as exc:
            self._complaints.warn(f"The effort meter cannot be read ({exc.strerror}).")
            return []

    # --- the thread ---

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="effort", daemon=True)
        atexit.register(self.close)  # a process that ended in the middle of an encode would abort
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or the process ends
            self._thread = None

    def _work(self) -> None:
        """Count webhooks as they came; between them, make suggestions again."""
        logs.begin("effort")
        while (work := self._next()) is not None:
            try:
                if isinstance(work, Event):
                    self._take(work)
                else:
                    finished = self.finish(work.project_id, work.effort, work.changed)
                    _say(work.project_id, finished)
            except OSError as exc:
                self._complaints.warn(f"The effort meter cannot be written ({exc.strerror}).")
            except Exception:
                logger.exception("something went wrong while effort was counted")

    def _next(self) -> Event | _Unfinished | None:
        """What is to be done next; None ends the thread."""
        with self._lock:
            if self._events:
                return self._events.popleft()
            if self._unfinished and not self._is_closed:
                return self._unfinished.popleft()
            self._thread = None
            atexit.unregister(self.close)
            return None

    def _take(self, event: Event) -> None:
        if event.action == ANNOTATIONS_DELETED:
            self.rows.remove(event.project_id, event.ids)
        elif event.action == TASKS_DELETED:
            self.rows.remove_tasks(event.project_id, event.ids)
        else:
            config = readable_config(event.label_config)
            effort, changed = self.count(event.project_id, event.annotation, event.task, config)
            if changed:
                self._unfinished.append(_Unfinished(event.project_id, effort, changed))
            else:
                _say(event.project_id, effort)


def readable_config(label_config: object) -> LabelConfig | None:
    """A project's labelling config; None where it cannot be read."""
    try:
        return parse_label_config(label_config)
    except EdgeSamError:
        return None


def _say(project_id: int, effort: AnnotationEffort) -> None:
    """One line of the log for an annotation."""
    total = Total()
    for region in effort.regions:
        total.add(region)
    iou = "unknown" if total.mean_iou is None else f"{total.mean_iou:.3f}"
    logger.info(
        "effort project=%s annotation=%s: %s regions, %s prompts, %s untouched, IoU %s",
        project_id, effort.annotation, total.regions, total.prompts, total.untouched, iou,
    )  # fmt: skip
