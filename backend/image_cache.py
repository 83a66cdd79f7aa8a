"""Image bytes on disk within a budget, and the way from an address to them.

Two kinds of small files in one folder: ``<sha256>.image`` holds bytes under the hash of their
content, ``<hash of the address>.way`` says which bytes an address led to, when that was last
checked and with which ETag. Every file is written beside and renamed into place, so threads and
processes may share a folder; what is read is hashed again, so a damaged file is only a miss. The
longest unused files go first. Losing the folder costs time, nothing else. It fetches nothing
(images.py) and no failure of the disk stops a click.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_STALE_TEMPORARY_S = 3600.0


@dataclass(frozen=True)
class Way:
    """Where an address led: to which bytes, under which ETag, checked when."""

    sha256: str
    etag: str | None
    checked_utc: float
    # Seconds since the epoch: comparable between processes and after a restart.

    def __post_init__(self) -> None:
        """Refuse what only a damaged file can say; a hash becomes a file's name.

        Raises:
            ValueError: With the name of the field.
        """
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 must be 64 hexadecimal digits.")
        if not isinstance(self.etag, str | None):
            raise ValueError("etag must be text or None.")


class ImageCache:
    """Bytes by content and ways by address; safe for threads and processes that share a folder."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        """Use a folder, which is made when something is first stored.

        Args:
            folder: Of its own; files of other kinds in it are left alone.
            budget_bytes: For all files together.
        """
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._unchecked_bytes = 0
        self._next_check_bytes = 0
        self._lock = threading.Lock()

    def way(self, name: str) -> Way | None:
        """Where the address ``name`` led last time, if that is still remembered."""
        path = self._way_path(name)
        try:
            record = json.loads(path.read_bytes())
            way = Way(str(record["sha256"]), record["etag"], float(record["checked_utc"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            _remove(path)
            return None
        _touch(path)
        return way

    def remember(self, name: str, way: Way) -> None:
        """Keep where the address ``name`` led."""
        self._write(self._way_path(name), json.dumps(asdict(way)).encode())

    def load(self, sha256: str) -> bytes | None:
        """Bytes by their hash; None when they are gone or no longer fit it."""
        path = self._image_path(sha256)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            logger.warning("A cached image was damaged and will be fetched again.")
            _remove(path)
            return None
        _touch(path)
        return data

    def store(self, data: bytes, sha256: str) -> None:
        """Keep bytes under their hash, unless they alone are over the budget."""
        if len(data) <= self._budget_bytes:
            self._write(self._image_path(sha256), data)

    def _way_path(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}.way"

    def _image_path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.image"

    def _write(self, path: Path, data: bytes) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=self._folder, suffix=".tmp", delete=False
            ) as temporary:
                try:
                    temporary.write(data)
                    temporary.close()
                    os.replace(temporary.name, path)  # noqa: PTH105  # one name is a str
                except OSError:
                    _remove(Path(temporary.name))
                    raise
            self._keep_budget(len(data))
        except OSError as exc:
            logger.warning("The image cache cannot be written: %s.", exc.strerror)

    def _keep_budget(self, written_bytes: int) -> None:
        """Look at the folder once enough has been written since the last look.

        A look costs a stat for each file. It comes before the budget can be passed, and after a
        fiftieth of it at the latest, since other processes write too.
        """
        with self._lock:
            self._unchecked_bytes += written_bytes
            if self._unchecked_bytes < self._next_check_bytes:
                return
            total_bytes = self._evict()
            self._unchecked_bytes = 0
            self._next_check_bytes = min(self._budget_bytes - total_bytes, self._budget_bytes // 50)

    def _evict(self) -> int:
        """Drop the longest unused files while the budget is passed; the bytes that remain."""
        files: list[tuple[float, int, Path]] = []
        now = time.time()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not entry.name.endswith((".image", ".way", ".tmp")):
                    continue
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    stat = entry.stat()
                    if not entry.name.endswith(".tmp"):
                        files.append((stat.st_mtime, stat.st_size, Path(entry.path)))
                    elif now - stat.st_mtime > _STALE_TEMPORARY_S:
                        _remove(Path(entry.path))
        total_bytes = sum(size for _, size, _ in files)
        if total_bytes <= self._budget_bytes:
            return total_bytes
        for _, size, path in sorted(files):
            if total_bytes <= self._budget_bytes * 9 // 10:
                break
            _remove(path)
            total_bytes -= size
        return total_bytes


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
