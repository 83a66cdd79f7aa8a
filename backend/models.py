"""Which model answers whom, in this process: the server's own, or the one its project was taught.

A request takes its project's model once and keeps it to its end, whatever is promoted meanwhile, so
no answer mixes two. The first request of a project opens what versions.py says it is served; after
that swap.py watches for changes. A bundle that is torn or was tampered with is never served: the
version before it is, and in the end the server's own.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from backend.logs import Complaints
from backend.model import ModelSettings, ServedModel
from backend.versions import Versions, served_before
from edgesam_core.bundle import Bundle
from edgesam_core.errors import BundleError, EdgeSamError

logger = logging.getLogger(__name__)

MOST_OPEN = 4
"""Versions that stay open beside those that projects are served; each takes about 150 MB."""


@dataclass(frozen=True)
class StandIn:
    """A version that answers in place of one that cannot be opened."""

    version: str
    why: str
    # a sentence: what is wrong with the other


class Models:
    """The open models; safe between threads."""

    def __init__(self, settings: ModelSettings, versions: Versions) -> None:
        """Open nothing yet.

        Args:
            settings: The server's own model, and how every model is run.
            versions: The trained ones.
        """
        self._settings = settings
        self._versions = versions
        self._served: dict[int, ServedModel] = {}
        self._open: OrderedDict[str, ServedModel] = OrderedDict()
        self._lock = threading.RLock()
        self._complaints = Complaints(logger)
        self.own = ServedModel(settings)

    def of(self, project_id: int | None) -> ServedModel:
        """The model that a project is served; the server's own where none is named."""
        if project_id is None or not self._versions.are_kept:
            return self.own
        served = self._served.get(project_id)
        if served is None:
            with self._lock:  # however many ask, its bundle is opened once
                served = self._served.get(project_id) or self._first(project_id)
                self._served[project_id] = served
        return served

    def version(self, version: str) -> ServedModel:
        """The model of a version, whoever is served it.

        Raises:
            BundleError: There is no such version here: nobody trained it here, and it is another
                than the server's own, as a worker's with another MODEL would be.
        """
        if version == self.own.version:
            return self.own
        with self._lock:
            model = self._open.get(version)
            if model is None:
                path = self._versions.bundle(version)
                model = ServedModel(replace(self._settings, name=str(path)))
                self._open[version] = model
            self._open.move_to_end(version)
            served = list(self._served.values())
            idle = [known for known, other in self._open.items() if other not in served]
            for longest_unused in idle[:-MOST_OPEN]:
                del self._open[longest_unused]
        return model

    def stand_in(self, project_id: int) -> StandIn | None:
        """Who answers where the version that a project should be served cannot; opens no graph.

        Of a version that this process does not serve the files are read.
        """
        served, why = self._served.get(project_id), ""
        open_here = {self.own.version} if served is None else {self.own.version, served.version}
        for version in self._wanted(project_id):
            if version in open_here:
                break
            try:
                Bundle.open(self._versions.bundle(version))
            except BundleError as exc:
                why = why or exc.sentence
            else:
                break
        else:
            version = self.own.version
        if not why:
            return None
        return StandIn(version if served is None else served.version, why)

    def projects(self) -> list[int]:
        """Projects that this process has answered."""
        return list(self._served)

    def serve(self, project_id: int, model: ServedModel) -> None:
        """Answer a project's next requests by another model."""
        self._served[project_id] = model

    def forget(self, version: str) -> None:
        """Let a version that could not be opened be tried anew, should it be promoted again."""
        with self._lock:
            self._open.pop(version, None)

    def _first(self, project_id: int) -> ServedModel:
        """The newest version of a project that can be opened."""
        for version in self._wanted(project_id):
            try:
                model = self.version(version)
                model.segmenter()
            except EdgeSamError as exc:
                self.forget(version)
                self._complaints.warn(f"project {project_id}, version {version}: {exc.sentence}")
            else:
                return model
        return self.own

    def _wanted(self, project_id: int) -> Iterator[str]:
        """What a project should be served, then what it was served before."""
        try:
            current = self._versions.current(project_id)
            if current is None:
                return
            yield current
            history = self._versions.history(project_id)
            for version in reversed(served_before(history, current)):
                if version is None:
                    return
                yield version
        except EdgeSamError as exc:
            self._complaints.warn(f"project {project_id}: {exc.sentence}")


def opened(models: Models, version: str | None) -> ServedModel:
    """A version whose graphs are open and have answered; None: the server's own model.

    Raises:
        BundleError: It is torn, was tampered with, or gives no answer.
    """
    model = models.own if version is None else models.version(version)
    try:
        model.segmenter()
    except BundleError:
        if version is not None:
            models.forget(version)
        raise
    return model
