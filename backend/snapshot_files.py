"""From the lines of a journal to the data set of a training run, in two COCO files.

    train.json, held_out.json    images, annotations, categories; a task is in the one or the other
    images/                      as they were fetched
    snapshot.json                what it is made of and what was left out; written last

Whether a task is held out is a hash of its id: it was so in every earlier snapshot and will be in
every later one, so no version was ever trained on what the next one is judged by. The files hold
nothing that depends on when or how often the work was interrupted: the same labels give the same
hash. The journal is read once for each list that is written, never kept in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.snapshot_journal import IMAGES, Journal, LeftOut, Picture, write_whole
from edgesam_core.errors import RunError

SUMMARY = "snapshot.json"
TRAIN = "train.json"
HELD_OUT = "held_out.json"

_HELD_OUT_SHARE = 5
"""One task in so many is held out."""

_ALSO_HELD_OUT = (
    "A task that is held out for the test has the same image. Remove one of the two tasks."
)


def is_held_out(project_id: int, task_id: int) -> bool:
    """Whether a task belongs to the test, for ever; one in five does."""
    digest = hashlib.sha256(f"{project_id}:{task_id}".encode("ascii")).hexdigest()
    return int(digest, 16) % _HELD_OUT_SHARE == 0


def snapshot_hash(folder: Path) -> str:
    """The hash of a snapshot: of its two files and of the images beside them.

    It is the sha256, in hex, of lines ``<sha256>  <name>``, as ``sha256sum`` prints them, sorted by
    name. An image's own hash is taken from its name; whoever doubts it hashes the file.
    """
    hashes = {f"{IMAGES}/{path.name}": path.stem for path in (folder / IMAGES).iterdir()}
    for name in (TRAIN, HELD_OUT):
        with (folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


@dataclass
class _Counted:
    """What went into the files, counted on the way."""

    tasks: set[int] = field(default_factory=set)
    annotations: set[int] = field(default_factory=set)
    labels: Counter[str] = field(default_factory=Counter)
    files: set[str] = field(default_factory=set)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def regions(self) -> int:
        return self.labels.total()


def write_data_set(journal: Journal, project_id: int) -> dict[str, Any]:
    """Write the files into the journal's folder.

    Returns:
        The content of ``snapshot.json``.

    Raises:
        RunError: There is nothing to learn from, or nothing to be judged by.
        OSError: The folder cannot be written.
    """
    data_set = _DataSet(journal, project_id)
    train, held_out = data_set.train, data_set.held_out
    left_out = [entry for line in journal.lines() for entry in line.left_out] + train.left_out
    _refuse_too_little(project_id, train, held_out, left_out)
    labels = train.labels + held_out.labels
    categories = {label: number for number, label in enumerate(sorted(labels), start=1)}
    data_set.write(TRAIN, categories, is_test=False)
    data_set.write(HELD_OUT, categories, is_test=True)
    _keep_only(journal.folder / IMAGES, train.files | held_out.files)
    annotations = sorted(train.annotations | held_out.annotations)
    summary = {
        "project": project_id,
        "hash": snapshot_hash(journal.folder),
        "taken_at": journal.taken_at,
        "tasks": len(train.tasks) + len(held_out.tasks),
        "annotations": len(annotations),
        "regions": train.regions + held_out.regions,
        "held_out_tasks": len(held_out.tasks),
        "held_out_regions": held_out.regions,
        "labels": dict(sorted(labels.items())),
        "annotation_ids": annotations,
        "left_out": [
            {name: value for name, value in vars(entry).items() if value is not None}
            for entry in left_out
        ],
        "left_out_count": len(left_out),
    }
    text = json.dumps(summary, ensure_ascii=False, indent=1)
    write_whole(journal.folder / SUMMARY, text.encode())
    return summary


class _DataSet:
    """The journal's pictures, those for training and those for the test."""

    def __init__(self, journal: Journal, project_id: int) -> None:
        self._journal, self._project_id = journal, project_id
        # Of the pictures that the test will show, the names stay in memory.
        self.held_out = self._count(is_test=True)
        self.train = self._count(is_test=False)

    def _of(self, *, is_test: bool) -> Iterator[tuple[int, Picture]]:
        for line in self._journal.lines():
            if is_held_out(self._project_id, line.task) is is_test:
                for picture in line.pictures:
                    yield line.task, picture

    def _pictures(self, *, is_test: bool) -> Iterator[tuple[int, Picture]]:
        """(task, picture), in order; none for training whose bytes are also in the test."""
        for task, picture in self._of(is_test=is_test):
            if is_test or picture.file_name not in self.held_out.files:
                yield task, picture

    def _count(self, *, is_test: bool) -> _Counted:
        counted = _Counted()
        for task, picture in self._of(is_test=is_test):
            annotations = {found["annotation"] for found in picture.objects}
            if not is_test and picture.file_name in self.held_out.files:
                entries = [LeftOut(task, number, _ALSO_HELD_OUT) for number in sorted(annotations)]
                counted.left_out += entries
                continue
            counted.tasks.add(task)
            counted.files.add(picture.file_name)
            counted.annotations |= annotations
            counted.labels.update(found["label"] for found in picture.objects)
        return counted

    def write(self, name: str, categories: dict[str, int], *, is_test: bool) -> None:
        """One COCO file, a record to a line."""
        lists: dict[str, Iterable[dict[str, Any]]] = {
            "images": self._image_records(is_test=is_test),
            "annotations": self._annotation_records(categories, is_test=is_test),
            "categories": ({"id": number, "name": name} for name, number in categories.items()),
        }
        with (self._journal.folder / name).open("w", encoding="utf-8") as file:
            opening = "{"
            for key, records in lists.items():
                file.write(f'{opening}"{key}": [')
                for place, record in enumerate(records):
                    file.write(",\n" if place else "\n")
                    json.dump(record, file, ensure_ascii=False)
                file.write("\n]")
                opening = ",\n"
            file.write("}\n")
            file.flush()
            os.fsync(file.fileno())

    def _image_records(self, *, is_test: bool) -> Iterator[dict[str, Any]]:
        for image_id, (task, picture) in enumerate(self._pictures(is_test=is_test), start=1):
            yield {
                "id": image_id,
                "file_name": picture.file_name,
                "height": picture.height,
                "width": picture.width,
                "task": task,
            }

    def _annotation_records(
        self, categories: dict[str, int], *, is_test: bool
    ) -> Iterator[dict[str, Any]]:
        number = 0
        for image_id, (_, picture) in enumerate(self._pictures(is_test=is_test), start=1):
            for found in picture.objects:
                number += 1
                rest = {name: value for name, value in found.items() if name != "label"}
                ids = {
                    "id": number,
                    "image_id": image_id,
                    "category_id": categories[found["label"]],
                }
                yield ids | rest


def _refuse_too_little(
    project_id: int, train: _Counted, held_out: _Counted, left_out: list[LeftOut]
) -> None:
    """Stop where a run could only fail.

    Raises:
        RunError: What is missing.
    """
    tasks = len(train.tasks) + len(held_out.tasks)
    if tasks == 0:
        first = f" The first of {len(left_out)} left out: {left_out[0].why}" if left_out else ""
        raise RunError(
            f"Project {project_id} has no annotation with a mask to learn from. "
            f"Label some tasks and submit them.{first}"
        )
    missing = "the training" if not train.tasks else "the test" if not held_out.tasks else None
    if missing:
        count = "1 task" if tasks == 1 else f"{tasks} tasks"
        raise RunError(
            f"Project {project_id} has masks in {count} only, none of them for {missing}: one task "
            "in five, chosen by its number for ever, is kept for the test. Label more tasks."
        )


def _keep_only(images: Path, used: set[str]) -> None:
    """Drop what an interrupted write left, and pictures of tasks that are not in the files.

    Raises:
        RunError: A picture is not there.
    """
    present = {path.name for path in images.iterdir()}
    for name in present - used:
        (images / name).unlink()
    if lost := used - present:
        raise RunError(f"The snapshot has lost {len(lost)} of its images. Begin it again.")
