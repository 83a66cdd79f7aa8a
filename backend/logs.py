"""One line per request, and everything else that is logged carries the request's id.

The record of the request that a thread is answering lives in a ContextVar: the engine writes down
what it did (stages, warm or cold, why a result is empty) without knowing who asked. Nothing here
ever takes a body, a header, a token, a URL or an RLE.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_OUR_LOGGERS = ("backend", "edgesam_core")
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_COMPLAINT_EVERY_S = 600.0


@dataclass(frozen=True)
class LogSettings:
    """What is written to the log."""

    level: str = "INFO"
    # `DEBUG`, `INFO`, `WARNING` or `ERROR`; INFO is one line per request.

    def __post_init__(self) -> None:
        """Refuse a level that is none."""
        if self.level.upper() not in _LEVELS:
            raise ValueError(f"level should be one of {', '.join(_LEVELS)}, not {self.level!r:.40}")


@dataclass
class RequestRecord:
    """What the log line of one request will say."""

    request_id: str = "-"
    project: int | None = None
    task_ids: tuple[int | None, ...] = ()
    model_version: str = "-"
    temperature: str = "-"
    # cold: an image was encoded for it, warm: none
    note: str = ""
    # why a result is empty, or what else the reader of the log should know
    regions: int = 0
    stage_ms: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """The record as the words of a log line."""
        tasks = ",".join(str(task_id) for task_id in self.task_ids[:10]) or "-"
        if len(self.task_ids) > 10:
            tasks += f",... ({len(self.task_ids)})"
        stages = ", ".join(f"{name} {ms:.0f}" for name, ms in self.stage_ms.items())
        text = (
            f"project={self.project if self.project is not None else '-'} task={tasks} "
            f"model_version={self.model_version} {self.temperature} regions={self.regions}"
        )
        return text + (f" ms: {stages}" if stages else "") + (f"; {self.note}" if self.note else "")


_record: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def begin(given_id: str | None = None) -> RequestRecord:
    """Start the record of a request in this thread.

    Args:
        given_id: The caller's own id; used if it is a plain word of at most 64 characters.
    """
    plain = given_id and _GIVEN_ID.fullmatch(given_id)
    record = RequestRecord(given_id if given_id and plain else secrets.token_hex(6))
    _record.set(record)
    return record


def current() -> RequestRecord:
    """The record of the request that this thread answers; outside of one, a fresh one."""
    record = _record.get()
    return record if record is not None else begin("-")


class Complaints:
    """Warnings about a part that may fail at every click: each sentence once in ten minutes."""

    def __init__(self, logger: logging.Logger) -> None:
        """Nothing said yet."""
        self._logger = logger
        self._said_at: dict[str, float] = {}

    def warn(self, sentence: str) -> None:
        """Log a sentence, unless it was logged a short while ago."""
        now = time.monotonic()
        if now - self._said_at.get(sentence, -_COMPLAINT_EVERY_S) >= _COMPLAINT_EVERY_S:
            self._said_at[sentence] = now
            self._logger.warning("%s", sentence)


def configure(settings: LogSettings) -> None:
    """Send our lines to stderr, unless the process has set up logging of its own."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s",
        level=logging.WARNING,
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_add_request_id)
    for name in _OUR_LOGGERS:
        logging.getLogger(name).setLevel(settings.level.upper())


def _add_request_id(log_record: logging.LogRecord) -> bool:
    record = _record.get()
    log_record.request_id = record.request_id if record is not None else "-"
    return True
