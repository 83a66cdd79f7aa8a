"""A project's labelled tasks, one after the other, and which of their annotations count.

Label Studio is asked for a page of tasks without their annotations, then for the annotations of
those that have any, fewer at a time where they are large: ten thousand tasks pass through without
being in memory together. It is the same list that label-studio-sdk's ``tasks.list`` asks for; the
SDK itself (pandas, nltk, OpenCV) has no place in a server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backend.label_studio import LabelStudioClient
from edgesam_core.errors import ImageTooLarge, UpstreamTimeout

Task = dict[str, Any]
Annotation = Mapping[str, Any]

TOO_LARGE = (
    "The task's annotations and predictions are larger than one answer may be. "
    "Delete predictions that are no longer needed, or draw simpler regions."
)

_PAGE = 100
_AT_A_TIME = 20
"""Tasks whose annotations are asked for together."""


def labelled_tasks(
    label_studio: LabelStudioClient, project_id: int, *, after: int = 0
) -> Iterator[Task]:
    """Every task with at least one annotation, skipped ones counted, in the order of their ids.

    Args:
        label_studio: Where they are.
        project_id: The project.
        after: Only tasks with larger ids.

    Yields:
        Tasks as the API has them, with ``annotations``; without that key where a task's
        annotations are too large to be sent.

    Raises:
        UpstreamError: Label Studio does not list them.
    """
    while page := label_studio.tasks(project_id, after=after, count=_PAGE, unlabelled=False):
        after = page[-1]["id"]
        labelled = [task["id"] for task in page if _may_have_annotations(task)]
        for start in range(0, len(labelled), _AT_A_TIME):
            yield from _fetch(label_studio, project_id, labelled[start : start + _AT_A_TIME])


def _may_have_annotations(task: Task) -> bool:
    counts = task.get("total_annotations"), task.get("cancelled_annotations")
    return None in counts or any(counts)


def _fetch(label_studio: LabelStudioClient, project_id: int, ids: Sequence[int]) -> Iterator[Task]:
    """These tasks, in two halves where they are too much for one answer."""
    try:
        tasks = label_studio.tasks_with_annotations(project_id, ids)
    except (ImageTooLarge, UpstreamTimeout) as exc:
        if len(ids) > 1:
            middle = len(ids) // 2
            yield from _fetch(label_studio, project_id, ids[:middle])
            yield from _fetch(label_studio, project_id, ids[middle:])
        elif isinstance(exc, ImageTooLarge):
            yield {"id": ids[0]}
        else:
            raise
        return
    yield from tasks
    # An answer may be shorter than was asked for, where Label Studio's operator limits it.
    missing = sorted(set(ids) - {task["id"] for task in tasks})
    if tasks and missing:
        yield from _fetch(label_studio, project_id, missing)


def choose(annotations: Sequence[Annotation]) -> tuple[list[Annotation], dict[int, str]]:
    """Which annotations of a task are taken, and why the others are not.

    Every annotator's work counts: the newest annotation of each. Where somebody has marked ground
    truth, it alone is the task's answer. Skipped and empty annotations never count. Drafts are not
    among a task's annotations: what was not submitted was not said.

    Returns:
        Those taken, in the order of their ids; a sentence for each other, by its id.
    """
    left_out: dict[int, str] = {}
    usable = []
    for annotation in sorted(annotations, key=lambda annotation: int(annotation["id"])):
        if annotation.get("was_cancelled"):
            left_out[annotation["id"]] = "The annotator skipped the task."
        elif not annotation.get("result"):
            left_out[annotation["id"]] = "The annotation is empty."
        else:
            usable.append(annotation)
    newest = {_annotator(annotation): annotation["id"] for annotation in sorted(usable, key=_age)}
    truths = {annotation["id"] for annotation in usable if annotation.get("ground_truth")}
    taken = truths or set(newest.values())
    why = (
        "Another annotation of the task is marked as ground truth."
        if truths
        else "The same annotator has a newer annotation of the task."
    )
    left_out |= {annotation["id"]: why for annotation in usable if annotation["id"] not in taken}
    return [annotation for annotation in usable if annotation["id"] in taken], left_out


def _annotator(annotation: Annotation) -> object:
    """The annotator's id; Label Studio writes a whole user in some places."""
    who = annotation.get("completed_by")
    return who.get("id") if isinstance(who, Mapping) else who


def _age(annotation: Annotation) -> tuple[str, int]:
    """Sorts the newest last: by the time of the last change (ISO, UTC), then by id."""
    changed = annotation.get("updated_at") or annotation.get("created_at") or ""
    return str(changed), int(annotation["id"])
