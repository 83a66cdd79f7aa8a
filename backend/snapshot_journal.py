"""What a snapshot has gathered so far, a line for each task, on the disk before the next begins.

    RUN/snapshot.unfinished/tasks.jsonl     {"project": 3, "taken_at": ...}, then a line per task
    RUN/snapshot.unfinished/images/         the pictures as they were fetched, named by sha256

A process that is killed leaves whole lines and at most one torn one, which is cut off; the next
process goes on after the last whole line. snapshot_files.py makes the data set from it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from edgesam_core.errors import RunError

JOURNAL = "tasks.jsonl"
IMAGES = "images"

_LINES_UNSYNCED = 50
"""So many tasks may a power failure cost; a killed process loses none."""


@dataclass(frozen=True)
class LeftOut:
    """Something that somebody did and that will teach nothing, with the reason."""

    task: int
    annotation: int | None
    # None: the whole task
    why: str
    # a sentence
    region: str | None = None
    # None: the whole annotation


@dataclass(frozen=True)
class Picture:
    """An image of a task with the objects in it, as they will stand in the COCO files."""

    file_name: str
    height: int
    width: int
    objects: list[dict[str, Any]]
    # COCO annotations with "label" in place of ids


@dataclass(frozen=True)
class TaskLine:
    """What a task gave."""

    task: int
    pictures: list[Picture] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> TaskLine:
        """Read a line."""
        found = json.loads(text)
        pictures = [Picture(**picture) for picture in found["pictures"]]
        return cls(found["task"], pictures, [LeftOut(**entry) for entry in found["left_out"]])


class Journal(AbstractContextManager["Journal"]):
    """A snapshot that is being taken, by one process at a time."""

    def __init__(self, folder: Path, project_id: int) -> None:
        """Begin it, or go on with what is there.

        Raises:
            RunError: Another process is at it, or it is of another project.
            OSError: The folder cannot be written.
        """
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = (folder / JOURNAL).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._begin(project_id)
        except BlockingIOError as exc:
            self._file.close()
            raise RunError(
                "Another process is taking this snapshot. Wait for it, or stop it first."
            ) from exc
        except BaseException:
            self._file.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the next process have it."""
        self._file.close()

    def _begin(self, project_id: int) -> None:
        """Cut off a torn line, read how far it is."""
        self.last_task, whole = 0, 0
        head: dict[str, Any] = {}
        self._file.seek(0)
        for line in self._file:
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                content = None
            if content is None:
                break
            whole += len(line)
            head = head or content
            self.last_task = content.get("task", 0)
        self._file.truncate(whole)
        self._unsynced = 0
        if not head:
            self.taken_at = datetime.now(UTC).isoformat(timespec="seconds")
            self._write({"project": project_id, "taken_at": self.taken_at})
            return
        self.taken_at = head["taken_at"]
        if head["project"] != project_id:
            raise RunError(
                f"This run is of project {head['project']}, not of {project_id}. Use another one."
            )

    def add(self, line: TaskLine) -> None:
        """Keep what a task gave. Its images are there before."""
        self._write(vars(line))

    def keep_image(self, data: bytes, ending: str) -> str:
        """Write an image unless it is there; its name in ``images``."""
        name = f"{hashlib.sha256(data).hexdigest()}.{ending}"
        path = self.folder / IMAGES / name
        if not path.exists():
            write_whole(path, data)
        return name

    def lines(self) -> Iterator[TaskLine]:
        """What was kept, task by task."""
        with (self.folder / JOURNAL).open(encoding="utf-8") as file:
            next(file)
            for text in file:
                yield TaskLine.parse(text)

    def _write(self, content: dict[str, Any]) -> None:
        text = json.dumps(content, ensure_ascii=False, default=vars)
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        self._unsynced += 1
        if self._unsynced >= _LINES_UNSYNCED:
            os.fsync(self._file.fileno())
            self._unsynced = 0


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is whole on the disk or not there."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
