"""A whole project encoded before anybody clicks: ``python -m backend precompute PROJECT``.

For the night before, and for projects that serve their tasks in random order, where prefetch.py
cannot know what comes next. Its process encodes by itself into the store that it shares with the
servers, and is nice to them; begun again, it passes over what is there. The command is in
__main__.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backend.label_studio import LabelStudioClient
from backend.service import Service
from backend.settings import Settings
from backend.store import NO_STORE, open_store
from edgesam_core.errors import EdgeSamError, RequestError

_PAGE = 100


@dataclass(frozen=True)
class Project:
    """What has to be encoded."""

    project_id: int
    label_config: object
    task_count: int


@dataclass(frozen=True)
class Step:
    """A task that was looked at: how many of its images were encoded now, and why one was not."""

    task_id: int
    encoded: int
    complaint: str | None = None


class Precompute:
    """Encodes projects in this process."""

    def __init__(self, settings: Settings) -> None:
        """Open the model.

        Args:
            settings: As the servers have them; their workers are left alone.

        Raises:
            RequestError: There is no store, so that nothing would be kept.
            BundleError: The model cannot be opened.
        """
        if open_store(settings.store) is NO_STORE:
            raise RequestError(
                "Nothing would be kept: set EDGESAM_CACHE_DIR or EDGESAM_STORE_URL, as for the "
                "server."
            )
        self._settings = settings
        self._service = Service.that_only_encodes(settings)
        self._label_studio = LabelStudioClient(settings.label_studio)
        self._service.models.own.segmenter()

    def project(self, project_id: int) -> Project:
        """Ask Label Studio about a project.

        Raises:
            RequestError: There is none with this number.
            UpstreamError: It cannot be asked.
        """
        found = self._label_studio.project(project_id)
        return Project(project_id, found.get("label_config"), int(found.get("task_number") or 0))

    def shortage(self, project: Project) -> str | None:
        """What to say where the store cannot hold the project; None where it can, or may."""
        settings = self._settings.store
        side = self._service.models.own.manifest.input_size // 16
        room = settings.store_bytes // (256 * side * side * 2)
        if settings.url or project.task_count <= room:
            return None
        return (
            f"The store holds about {room} images, the project has {project.task_count}: the first "
            "ones will be forgotten again. Raise EDGESAM_STORE_BYTES, here and for the server."
        )

    def encode(self, project: Project) -> Iterator[Step]:
        """Encode task by task, in the order of their ids; one that fails does not end it.

        Raises:
            LabelConfigError: The project's labelling config has no image.
            UpstreamError: Label Studio does not list the tasks.
        """
        after = 0
        while tasks := self._label_studio.tasks(
            project.project_id, after=after, count=_PAGE, unlabelled=False
        ):
            for task in tasks:
                yield self._encode(project, task)
            after = tasks[-1]["id"]

    def _encode(self, project: Project, task: Mapping[str, Any]) -> Step:
        encoded, complaint = 0, None
        for image in self._service.engine.images_of(
            project.project_id, [task], project.label_config
        ):
            try:
                encoded += self._service.encoding.ahead(image) == "encoded"
            except EdgeSamError as exc:
                complaint = exc.sentence
        return Step(task["id"], encoded, complaint)
