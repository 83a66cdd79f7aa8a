"""Which versions of the model there are, and which of them each project is served: a folder.

    bundles/VERSION/             an immutable bundle, added once
    projects/ID/current          the version that is served, one line, replaced as a whole
    projects/ID/begun            the version that a process has begun to answer by, in the same way
    projects/ID/history.jsonl    what was added, promoted and rolled back, when and why

A project without a ``current`` is served the model that the server was started with. Every process
that shares the folder reads it anew, so none holds a truth of its own; nothing is ever deleted, so
that a rollback finds its bundle, and its old embeddings still lie under the old version's keys.

Who serves the versions is models.py's affair, who may promote one the routes'.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from edgesam_core.bundle import Bundle, staged_folder
from edgesam_core.errors import BundleError, RequestError, VersionsError

Event = Literal["added", "refused", "promoted", "rolled back"]

_VERSION = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class VersionSettings:
    """Where versions are kept."""

    data_dir: Path | None = None
    # Folder for training runs, trained versions, and which of them each project is served; shared
    # by all processes, to be backed up with Label Studio's data. Without it nothing is trained.


@dataclass(frozen=True)
class Change:
    """One line of a project's history."""

    at: str
    # UTC, ISO 8601
    event: Event
    version: str
    before: str | None
    # what was served until then; None: the server's own model
    why: str


class Versions:
    """The folder of versions; safe between threads and processes."""

    def __init__(self, settings: VersionSettings) -> None:
        """Read nothing yet.

        Args:
            settings: Where the folder is, if there is one.
        """
        self._folder = settings.data_dir and settings.data_dir / "versions"

    @property
    def are_kept(self) -> bool:
        """Whether there is a folder for them."""
        return self._folder is not None

    def current(self, project_id: int) -> str | None:
        """The version that a project is served; None: the server's own model.

        Raises:
            VersionsError: The file is there and cannot be read.
        """
        if self._folder is None:
            return None
        return _version_in(self._project(project_id) / "current")

    def begun(self, project_id: int) -> str | None:
        """The version that a process was the first to answer by; the others follow at once.

        Raises:
            VersionsError: As `current`.
        """
        if self._folder is None:
            return None
        return _version_in(self._project(project_id) / "begun")

    def begin(self, project_id: int, version: str) -> None:
        """Tell the other processes that this one answers by a version, trained or its own.

        Raises:
            VersionsError: The folder cannot be written.
        """
        with self._changing(project_id):
            if self.begun(project_id) != version:
                _replace(self._project(project_id) / "begun", f"{version}\n")

    def bundle(self, version: str) -> Path:
        """The folder of a version that was added.

        Raises:
            BundleError: There is none.
        """
        if self._folder is None or not _VERSION.fullmatch(version):
            raise _no_such(version)
        path = self._folder / "bundles" / version
        if not path.is_dir():
            raise _no_such(version)
        return path

    def of(self, project_id: int | None) -> list[str]:
        """Versions that were trained for a project, or for any; the newest last."""
        if self._folder is None:
            return []
        if project_id is None:
            folders = (self._folder / "bundles").glob("*")
            there = [path for path in folders if _VERSION.fullmatch(path.name)]
            return [path.name for path in sorted(there, key=lambda path: path.stat().st_mtime)]
        added = [c.version for c in self.history(project_id) if c.event in ("added", "promoted")]
        return list(dict.fromkeys(added))

    def projects(self) -> list[int]:
        """Projects that a version was trained for or that were served one."""
        if self._folder is None:
            return []
        folders = (self._folder / "projects").glob("*/history.jsonl")
        return sorted(int(path.parent.name) for path in folders if path.parent.name.isdecimal())

    def history(self, project_id: int) -> list[Change]:
        """What happened to a project's model, oldest first; a torn line is passed over."""
        if self._folder is None:
            return []
        try:
            lines = (self._project(project_id) / "history.jsonl").read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise _unreadable(self._project(project_id) / "history.jsonl", exc) from exc
        return list(_changes(lines))

    def add(self, project_id: int, bundle: Path, why: str) -> str:
        """Take in a bundle that was trained for a project; nobody is served it yet.

        Returns:
            Its version. One that is there already is not copied again.

        Raises:
            BundleError: It is torn or was tampered with.
            VersionsError: There is no folder, or it cannot be written.
        """
        version = Bundle.open(bundle).manifest.version
        place = self._writable() / "bundles" / version
        with self._changing(project_id) as served:
            if not place.is_dir():
                with staged_folder(place) as stage:
                    shutil.copytree(bundle, stage, dirs_exist_ok=True)
            self._note(project_id, "added", version, served, why)
        return version

    def refuse(self, project_id: int, version: str, why: str) -> None:
        """Note that a version did not pass the gate; it stays and can be promoted by hand."""
        with self._changing(project_id) as served:
            self._note(project_id, "refused", version, served, why)

    def promote(self, project_id: int, version: str, why: str) -> None:
        """Serve a project another version, from now on and in every process.

        Raises:
            BundleError: There is no such version, or it is torn or was tampered with.
            VersionsError: The folder cannot be written; the old version stays.
        """
        Bundle.open(self.bundle(version))
        with self._changing(project_id) as served:
            if served != version:
                self._note(project_id, "promoted", version, served, why)
                self._serve(project_id, version)

    def rollback(self, project_id: int, why: str) -> str | None:
        """Serve a project what it was served before; again, and it is the one before that.

        Returns:
            The version; None: the server's own model.

        Raises:
            RequestError: Nothing was served before.
            VersionsError: As `promote`.
        """
        with self._changing(project_id) as served:
            story = served_before(self.history(project_id), served)
            if not story:
                raise RequestError(
                    "This project was never served another version, so none can come back."
                )
            before = story[-1]
            self._note(project_id, "rolled back", before or "", served, why)
            self._serve(project_id, before)
        return before

    def _serve(self, project_id: int, version: str | None) -> None:
        """Replace ``current``; nobody has begun to answer by it yet. Under the project's lock."""
        folder = self._project(project_id)
        (folder / "begun").unlink(missing_ok=True)
        if version is None:
            (folder / "current").unlink(missing_ok=True)
        else:
            _replace(folder / "current", f"{version}\n")

    def _project(self, project_id: int) -> Path:
        assert self._folder is not None, "asked for a project where no versions are kept"
        return self._folder / "projects" / str(int(project_id))

    def _writable(self) -> Path:
        if self._folder is None:
            raise VersionsError("No versions are kept here: set EDGESAM_DATA_DIR to a folder.")
        return self._folder

    @contextmanager
    def _changing(self, project_id: int) -> Iterator[str | None]:
        """One change of a project at a time, over all processes; yields what is served."""
        self._writable()
        folder = self._project(project_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield self.current(project_id)
        except OSError as exc:
            raise VersionsError(
                f"The folder of versions cannot be written ({exc.strerror}). What was served stays."
            ) from exc

    def _note(
        self, project_id: int, event: Event, version: str, before: str | None, why: str
    ) -> None:
        change = Change(datetime.now(UTC).isoformat(), event, version, before, why)
        with (self._project(project_id) / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(change), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def served_before(history: Sequence[Change], current: str | None) -> list[str | None]:
    """What a project was served before its present version, the newest last; None: our own model.

    What was rolled back from is not in it, so that rollback after rollback leads to the beginning.

    Args:
        history: The project's, oldest first.
        current: As `Versions.current`; the last change may be noted and not have come to be.
    """
    story: list[str | None] = [None]
    for change in history:
        if change.event == "promoted":
            story = [*_up_to(story, change.before), change.version]
        elif change.event == "rolled back":
            story = _up_to(story, change.version or None)
    return _up_to(story, current)[:-1]


def _up_to(story: list[str | None], version: str | None) -> list[str | None]:
    """A story that ends with a version: cut off behind it, or with it added."""
    for place in reversed(range(len(story))):
        if story[place] == version:
            return story[: place + 1]
    return [*story, version]


def _changes(lines: list[str]) -> Iterator[Change]:
    for line in lines:
        try:
            yield Change(**json.loads(line))
        except (ValueError, TypeError):
            continue


def _version_in(path: Path) -> str | None:
    """The version that a small file names, if it is there and names one."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise _unreadable(path, exc) from exc
    return text if _VERSION.fullmatch(text) else None


def _replace(path: Path, text: str) -> None:
    """Replace a small file as a whole; on the disk when this returns."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _no_such(version: str) -> BundleError:
    return BundleError(
        f"There is no version {version!r:.40} of the model here; /versions lists those that are. "
        "Start workers and servers with the same MODEL and EDGESAM_DATA_DIR."
    )


def _unreadable(path: Path, exc: Exception) -> VersionsError:
    return VersionsError(
        f"The file {path.name} of a project's versions cannot be read.", detail=f"{path}: {exc}"
    )
