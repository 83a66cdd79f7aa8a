"""A version that was promoted takes over in a running server, and nobody notices but by its masks.

A thread looks at each project's ``current`` a few times a second, which costs one small read. Where
it has changed: open the new version and let it answer a click of its own, encode the images that
the project's annotators clicked on last, and only then answer by it. The first process to do so
tells the others, who follow as soon as the image in hand is encoded and take up the rest behind it,
so that all agree within one look and one encoding. Requests under way keep the model that they
began with. What cannot be opened is refused, with a line in the log, and the old version goes on; a
minute later it is tried again, in case somebody has mended it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from backend.logs import Complaints
from backend.models import Models, opened
from backend.versions import Versions
from backend.watch import Watch
from edgesam_core.errors import BundleError, EdgeSamError, VersionsError

logger = logging.getLogger(__name__)

LOOK_S = 0.2
"""Between two looks at what projects should be served."""

REFUSED_S = 60.0
"""For which a version that could not be opened is not tried again."""

Warm = Callable[[int, str], Iterator[object]]
"""Encodes a project's images for a version, one at each step."""


class Swaps:
    """Watches for promotions; one thread per process."""

    def __init__(self, models: Models, versions: Versions, warm: Warm) -> None:
        """Start nothing yet.

        Args:
            models: Who is served what, in this process.
            versions: Who should be served what.
            warm: Encodes the images that a project works on for a version, one at each step.
        """
        self._models = models
        self._versions = versions
        self._warm = warm
        self._refused: dict[int, tuple[str | None, float]] = {}
        # by project: the version, and until when
        self._watch = Watch(self.look, every_s=LOOK_S, name="swap")
        self._complaints = Complaints(logger)

    def start(self) -> None:
        """Watch from now on; in the process that serves, since a fork has no threads."""
        if self._versions.are_kept:
            self._watch.start()

    def stop(self) -> None:
        """Watch no more."""
        self._watch.stop()

    def look(self) -> None:
        """Bring every project of this process to the version that it should be served."""
        for project_id in self._models.projects():
            try:
                self._bring(project_id)
            except EdgeSamError as exc:
                self._complaints.warn(f"Project {project_id} keeps its model: {exc.sentence}")
            except Exception:
                logger.exception("project %d keeps its model", project_id)

    def _bring(self, project_id: int) -> None:
        wanted = self._versions.current(project_id)
        served = self._models.of(project_id)
        if served.version == (wanted or self._models.own.version):
            self._refused.pop(project_id, None)
            return
        refused, until = self._refused.get(project_id, (wanted, 0.0))
        if refused == wanted and time.monotonic() < until:
            return
        try:
            model = opened(self._models, wanted)
        except BundleError:
            self._refused[project_id] = wanted, time.monotonic() + REFUSED_S
            raise
        images = self._warm(project_id, model.version)
        before = 0
        while not self._another_began(project_id, model.version) and next(images, None) is not None:
            before += 1
        self._models.serve(project_id, model)
        with suppress(VersionsError):  # the others then follow when they have encoded theirs
            self._versions.begin(project_id, model.version)
        after = sum(1 for _ in images)
        logger.info(
            "project %d is served version %s instead of %s; images encoded for it: %d and then %d",
            project_id, model.version, served.version, before, after,
        )  # fmt: skip

    def _another_began(self, project_id: int, version: str) -> bool:
        return self._versions.begun(project_id) == version
