"""Turns to encode that all web processes of a machine share: locks on files.

Each process has turns of its own (turns.py). Several processes side by side would each encode on
all processors, and all of them would be slower. So whoever encodes also holds one of as many locks
as there is room for. A lock belongs to an open file and the kernel lets go of it when its holder
ends, however that ends: a process that was killed blocks nobody.

Encoder workers and `precompute` stand aside: workers are as many as the operator started, and a
precomputing at low priority that held a turn would make clicks wait at that priority.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from backend.logs import Complaints

_POLL_S = 0.01


class MachineTurns:
    """As many turns as the machine has room for; safe between threads and processes.

    Where no file can be locked (no folder, a disk that is full or knows no locks) there is no limit
    and one log line: each process then has its own turns only.
    """

    def __init__(self, folder: Path | None, at_once: int) -> None:
        """Open nothing yet.

        Args:
            folder: Which the processes share; None for no limit.
            at_once: How many may encode side by side.
        """
        # A folder may be shared by machines, and their processors are not.
        self._paths = [folder / f"encode-{machine_id()}-{n}.lock" for n in range(at_once) if folder]
        self._held: list[int | None] = []
        self._complaints = Complaints(logging.getLogger(__name__))

    def take(self, timeout_s: float) -> bool:
        """Take a turn; False where none became free in time."""
        deadline = time.monotonic() + timeout_s
        while not self.take_now():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def take_now(self) -> bool:
        """Take a turn if one is free."""
        for path in self._paths:
            try:
                self._held.append(_locked(path))
            except BlockingIOError:
                continue
            except OSError as exc:
                self._complaints.warn(
                    f"Encodes of several processes cannot take turns: {exc.strerror}. Give them a "
                    "folder that can be written to, EDGESAM_CACHE_DIR."
                )
                break
            return True
        else:
            if self._paths:
                return False
        self._held.append(None)
        return True

    def is_somebody_encoding(self) -> bool:
        """Whether a turn is taken, by whichever process; takes none."""
        for path in self._paths:
            try:
                os.close(_locked(path))
            except BlockingIOError:
                return True
            except OSError:
                break
        return False

    def give_back(self) -> None:
        """Let the next one encode, of whichever process."""
        lock = self._held.pop()
        if lock is not None:
            os.close(lock)


def _locked(path: Path) -> int:
    """A file that nobody else has locked, open and locked.

    Raises:
        BlockingIOError: Somebody has.
        OSError: It cannot be opened, or locked at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def machine_id() -> str:
    """What all containers of a machine have in common, and no two machines."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
