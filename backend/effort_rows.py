"""What every annotation cost its annotator, on the disk: one line for each time it was seen.

    effort/PROJECT/annotations.jsonl   the last line of an annotation counts
    effort/PROJECT/lock                held while a line is written

An annotation that was changed has a newer line, one that was deleted a line without regions, so
nothing is counted twice whoever writes. Whichever process gets a webhook appends; readers go on
where they stopped. All of it can be made again from Label Studio (effort_rebuild.py), so nothing is
fsynced.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO


@dataclass(frozen=True)
class RegionEffort:
    """One region that was submitted, and how it came about."""

    label: str
    version: str | None = None
    # of the model that suggested it; None: drawn by hand
    prompts: int = 0
    # clicks and boxes that were drawn for it
    untouched: bool = False
    # submitted as it was suggested
    iou: float | None = None
    # of the suggestion with what was submitted; None: not known (yet)


@dataclass(frozen=True)
class AnnotationEffort:
    """An annotation as it was when its last line was written."""

    annotation: int
    task: int | None
    created_at: str
    # ISO 8601, as Label Studio has it
    updated_at: str
    regions: tuple[RegionEffort, ...] = ()


@dataclass
class _Read:
    """What this process knows of a project's file."""

    inode: int
    offset: int = 0
    annotations: dict[int, AnnotationEffort] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)

    def take(self, line: bytes) -> None:
        """Take in a line; a torn one is passed over."""
        try:
            fields = json.loads(line)
            if "deleted" in fields:
                self.deleted.add(fields["deleted"])
                self.annotations.pop(fields["deleted"], None)
                return
            regions = tuple(RegionEffort(**region) for region in fields.pop("regions"))
            found = AnnotationEffort(**fields, regions=regions)
        except (ValueError, TypeError, KeyError):
            return
        known = self.annotations.get(found.annotation)
        is_late = known is not None and known.updated_at > found.updated_at
        if found.annotation not in self.deleted and not is_late:
            self.annotations[found.annotation] = found


class EffortRows:
    """The folder of effort; safe between threads and processes."""

    def __init__(self, data_dir: Path | None) -> None:
        """Read nothing yet.

        Args:
            data_dir: ``VersionSettings.data_dir``; None: nothing is counted.
        """
        self._root = data_dir and data_dir / "effort"
        self._read: dict[int, _Read] = {}
        self._lock = threading.Lock()

    @property
    def are_kept(self) -> bool:
        """Whether there is a folder for them."""
        return self._root is not None

    def projects(self) -> list[int]:
        """Projects of which anything is known."""
        if self._root is None:
            return []
        return sorted(int(p.name) for p in self._root.glob("*") if p.name.isdecimal())

    def of(self, project_id: int) -> list[AnnotationEffort]:
        """The annotations of a project that there are now.

        Raises:
            OSError: The file is there and cannot be read.
        """
        path = self._path(project_id)
        with self._lock:
            try:
                with path.open("rb") as file:
                    read = self._read[project_id] = _go_on(self._read.get(project_id), file)
            except FileNotFoundError:
                return []
            return list(read.annotations.values())

    def note(self, project_id: int, effort: AnnotationEffort) -> None:
        """Count an annotation; an earlier line of it counts no more.

        Raises:
            OSError: The folder cannot be written.
        """
        self._append(project_id, [asdict(effort)])

    def remove(self, project_id: int, annotation_ids: Iterable[int]) -> None:
        """Count these annotations no more; they are gone for good.

        Raises:
            OSError: The folder cannot be written.
        """
        self._append(project_id, [{"deleted": number} for number in annotation_ids])

    def remove_tasks(self, project_id: int, task_ids: Collection[int]) -> None:
        """Count what these tasks had no more.

        Raises:
            OSError: The folder cannot be read or written.
        """
        self.remove(project_id, [e.annotation for e in self.of(project_id) if e.task in task_ids])

    def tidy(self, project_id: int) -> None:
        """Write the file anew with one line for each annotation that there is.

        Raises:
            OSError: The folder cannot be written.
        """
        with self._writing(project_id) as path:
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_bytes(_lines(asdict(effort) for effort in self.of(project_id)))
            unfinished.replace(path)

    def _append(self, project_id: int, lines: list[dict[str, Any]]) -> None:
        if not lines:
            return
        with self._writing(project_id) as path, path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            is_torn = file.read() not in (b"", b"\n")
            file.write((b"\n" if is_torn else b"") + _lines(lines))

    @contextmanager
    def _writing(self, project_id: int) -> Iterator[Path]:
        """The path of a project's file, which one at a time may write."""
        path = self._path(project_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path

    def _path(self, project_id: int) -> Path:
        assert self._root is not None, "asked for a project where nothing is counted"
        return self._root / str(int(project_id)) / "annotations.jsonl"


def _go_on(known: _Read | None, file: BinaryIO) -> _Read:
    """Take in the whole lines behind those that are known; all of them, of another file."""
    status = os.fstat(file.fileno())
    if known is None or known.inode != status.st_ino or known.offset > status.st_size:
        known = _Read(status.st_ino)
    file.seek(known.offset)
    data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    known.offset += len(whole)
    for line in whole.splitlines():
        known.take(line)
    return known


def _lines(values: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(value, separators=(",", ":")) + "\n" for value in values).encode()
