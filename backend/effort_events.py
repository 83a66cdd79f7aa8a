"""What Label Studio's webhooks say about annotations that were made, changed or deleted.

Forms: label_studio 1.23.2, seen live. A webhook brings the annotation and its task whole, so nobody
need be asked; of what is deleted it brings ids. One of another form says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ANNOTATIONS_DELETED = "ANNOTATIONS_DELETED"
TASKS_DELETED = "TASKS_DELETED"

_SUBMITTED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")
_LISTED = {ANNOTATIONS_DELETED: "annotations", TASKS_DELETED: "tasks"}
_ANNOTATION_BYTES = 1000  # beside its shapes, about
_NUMBER_BYTES = 8


@dataclass(frozen=True)
class Event:
    """Something that changes what is to be counted."""

    project_id: int
    action: str
    annotation: Mapping[str, Any]
    # as it was submitted; empty where something was deleted
    task: Mapping[str, Any]
    label_config: object
    ids: tuple[int, ...]
    # of the annotations or tasks that were deleted
    nbytes: int
    # of memory that it takes, about


def read_event(action: object, body: Mapping[str, Any]) -> Event | None:
    """A webhook's body as an event; None where it is none, or has another form."""
    project = body.get("project")
    if not isinstance(project, dict) or type(project.get("id")) is not int:
        return None
    if action in (ANNOTATIONS_DELETED, TASKS_DELETED):
        ids = _ids(body.get(_LISTED[str(action)]))
        nbytes = _NUMBER_BYTES * len(ids)
        return Event(project["id"], str(action), {}, {}, None, ids, nbytes)
    annotation, task = body.get("annotation"), body.get("task")
    if action not in _SUBMITTED or not isinstance(annotation, dict) or not isinstance(task, dict):
        return None
    if type(annotation.get("id")) is not int:
        return None
    nbytes = _weigh(annotation.get("result"))
    label_config = project.get("label_config")
    return Event(project["id"], str(action), annotation, task, label_config, (), nbytes)


def _ids(listed: object) -> tuple[int, ...]:
    given = [item.get("id") for item in _list(listed) if isinstance(item, dict)]
    return tuple(number for number in given if type(number) is int)


def _weigh(results: object) -> int:
    """How much memory the results of an annotation take, about."""
    nbytes = _ANNOTATION_BYTES
    for result in _list(results):
        value = result.get("value") if isinstance(result, dict) else None
        if isinstance(value, dict):
            parts = [part for part in value.values() if isinstance(part, list | str)]
            nbytes += _NUMBER_BYTES * sum(len(part) for part in parts)
    return nbytes


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
