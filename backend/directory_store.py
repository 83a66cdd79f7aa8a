"""Entries as files of one folder, within a budget of bytes; shared by threads and processes.

A file is written beside and renamed into place, so that a reader sees a whole entry or none, also
when a process is killed in the middle. It is not forced to the disk (fsync): what a power failure
tears no longer fits its checksum and is a miss like any other. A file is named by the hash of its
key, its time is that of its last use, and the longest unused go first, on a thread of their own: a
look at 10,000 entries takes a tenth of a second, for which no click waits.

No lock is held between processes. Two that evict at once remove the same files; one that reads what
another removes still has it open.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path

from backend.logs import Complaints
from backend.sealed import MAX_LINE_BYTES, is_sealed, seal

logger = logging.getLogger(__name__)

_ENTRY, _TEMPORARY = ".entry", ".tmp"
_STALE_TEMPORARY_S = 3600.0
_BLOCK_BYTES = 4096  # a file takes whole blocks


class DirectoryStore:
    """Bytes by key in a folder of its own."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        """Use a folder, which is made when something is first put.

        Args:
            folder: Files of other kinds in it are left alone.
            budget_bytes: For all entries together; a larger one is not kept. Passed for a moment
                by what is written while old entries are being dropped.
        """
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._unchecked_bytes = 0
        self._next_check_bytes = 0
        self._is_evicting = False
        self._lock = threading.Lock()
        self._complaints = Complaints(logger)

    def get(self, key: str) -> bytes | None:
        """The value, or None; a damaged entry is removed."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                line, value = file.readline(MAX_LINE_BYTES), file.read()
        except FileNotFoundError:
            return None
        except OSError as exc:
            self._complaints.warn(f"A cache folder cannot be read: {exc.strerror}.")
            return None
        if not is_sealed(line, key, value):
            self._complaints.warn("A damaged entry of a cache folder was removed.")
            _remove(path)
            return None
        _touch(path)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep a value under its key, unless it alone is over the budget."""
        line = seal(key, value)
        size_bytes = _on_disk(len(line) + len(value))
        if size_bytes > self._budget_bytes:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(self._path(key), line, value)
            self._keep_budget(size_bytes)
        except OSError as exc:
            self._complaints.warn(f"A cache folder cannot be written: {exc.strerror}.")

    def has(self, key: str) -> bool:
        """Whether there is an entry, which is not read; now the last to be forgotten."""
        path = self._path(key)
        _touch(path)
        try:
            return path.exists()
        except OSError:
            return False

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}{_ENTRY}"

    def _write(self, path: Path, line: bytes, value: bytes) -> None:
        with tempfile.NamedTemporaryFile(
            dir=self._folder, suffix=_TEMPORARY, delete=False
        ) as temporary:
            try:
                temporary.write(line)
                temporary.write(value)
                temporary.close()
                Path(temporary.name).replace(path)
            except BaseException:
                _remove(Path(temporary.name))
                raise

    def _keep_budget(self, written_bytes: int) -> None:
        """Look at the folder once enough has been written since the last look, and do not wait.

        A look costs a stat for each file. It begins when the budget is nearly used, and after a
        fiftieth of it at the latest, since other processes write too.
        """
        with self._lock:
            self._unchecked_bytes += written_bytes
            if self._is_evicting or self._unchecked_bytes < self._next_check_bytes:
                return
            self._is_evicting, self._unchecked_bytes = True, 0
        try:
            threading.Thread(target=self._evict, name="evict", daemon=True).start()
        except RuntimeError:  # a process that has no more threads: the next entry tries again
            with self._lock:
                self._is_evicting, self._unchecked_bytes = False, self._next_check_bytes

    def _evict(self) -> None:
        """Drop the longest unused entries if the budget is nearly used."""
        step_bytes, used_bytes = self._budget_bytes // 50, 0
        try:
            entries = self._entries()
            used_bytes = sum(size for _, size, _ in entries)
            if used_bytes > self._budget_bytes - step_bytes:
                for _, size, path in sorted(entries):
                    if used_bytes <= self._budget_bytes * 9 // 10:
                        break
                    _remove(path)
                    used_bytes -= size
        except OSError as exc:
            self._complaints.warn(f"A cache folder cannot be tidied: {exc.strerror}.")
        finally:
            with self._lock:
                left_bytes = self._budget_bytes - step_bytes - used_bytes
                self._next_check_bytes = min(left_bytes, step_bytes)
                self._is_evicting = False

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Time of last use, bytes and path of every entry; leftovers of killed processes go."""
        entries: list[tuple[float, int, Path]] = []
        now = time.time()
        with os.scandir(self._folder) as files:
            for file in files:
                if not file.name.endswith((_ENTRY, _TEMPORARY)):
                    continue
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    stat = file.stat()
                    if file.name.endswith(_ENTRY):
                        entries.append((stat.st_mtime, _on_disk(stat.st_size), Path(file.path)))
                    elif now - stat.st_mtime > _STALE_TEMPORARY_S:
                        _remove(Path(file.path))
        return entries


def _on_disk(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone, or a disk that can only be read
        os.utime(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
