"""A project's effort counted anew from Label Studio: ``python -m backend effort PROJECT``.

For annotations whose webhooks never came (the server was away, an export was imported), and for
IoUs that were not made. Everything that the meter knows stands in the annotations themselves, so
this gives what the webhooks would have given. Annotations that are not there any more are
forgotten. What has its IoU is not compared again, so that an interrupted command goes on.

Runs beside the server: what comes in by webhook meanwhile is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backend.effort import Effort, readable_config
from backend.effort_rows import AnnotationEffort
from backend.label_studio import LabelStudioClient
from backend.labelled_tasks import labelled_tasks
from edgesam_core.errors import RequestError, VersionsError


def rebuild(
    effort: Effort, label_studio: LabelStudioClient, project_id: int
) -> Iterator[AnnotationEffort]:
    """Count a project's annotations, skipped ones too, and forget those that are gone.

    Yields:
        Each annotation as it was counted.

    Raises:
        RequestError: There is no folder to count in, or no such project.
        UpstreamError: Label Studio does not list the tasks.
        VersionsError: The folder cannot be written.
    """
    if not effort.rows.are_kept:
        raise RequestError("Nothing is counted here: set EDGESAM_DATA_DIR, as for the server.")
    project = label_studio.project(project_id)
    config = readable_config(project.get("label_config"))
    try:
        gone = {known.annotation: known for known in effort.rows.of(project_id)}
        for task in labelled_tasks(label_studio, project_id):
            if "annotations" not in task:  # too large to be sent: what is known of it stays
                gone = {number: e for number, e in gone.items() if e.task != task["id"]}
            for annotation in task.get("annotations", ()):
                known = gone.pop(annotation["id"], None)
                if known is not None and _is_complete(known, annotation):
                    yield known
                else:
                    counted, changed = effort.count(project_id, annotation, task, config)
                    yield effort.finish(project_id, counted, changed)
        effort.rows.remove(project_id, gone)
        effort.rows.tidy(project_id)
    except OSError as exc:
        raise VersionsError(
            f"The folder of the effort meter cannot be written ({exc.strerror}). Make room there "
            "and begin again.",
            detail=str(exc),
        ) from exc


def _is_complete(known: AnnotationEffort, annotation: dict[str, Any]) -> bool:
    """Whether an annotation was counted as it is now, with every IoU that it can have."""
    is_current = known.updated_at == str(annotation.get("updated_at") or "")
    return is_current and all(r.version is None or r.iou is not None for r in known.regions)
