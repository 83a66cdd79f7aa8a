"""How far a training run is: the content of its ``state.json``, read and replaced as a whole.

runs.py keeps the folder that such files lie in.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from edgesam_core.errors import NoSuchRun, RequestError, TrainingUnavailable

STATE = "state.json"

Stage = Literal["queued", "snapshot", "training", "gate", "done"]
Outcome = Literal["promoted", "kept", "failed", "cancelled"]


@dataclass(frozen=True)
class Budget:
    """How much one run may take; None: as much as its recipe says."""

    minutes: float | None = None
    # of one core, for the training itself
    steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no budget."""
        for value, kind in ((self.minutes, int | float), (self.steps, int)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 1e6:
                raise RequestError("minutes and steps should be numbers above 0.")


@dataclass(frozen=True)
class RunState:
    """How far a run is, the content of ``state.json``; times are UTC, ISO 8601."""

    job: str
    project: int
    why: str
    # who or what asked for it
    asked_at: str
    stage: Stage = "queued"
    outcome: Outcome | None = None
    reason: str = ""
    # a sentence for the admin, once it is done
    started_at: str | None = None
    ended_at: str | None = None
    base: str | None = None
    # version of the server's own model, which the training starts from
    version: str | None = None
    # of the challenger
    minutes: float | None = None
    steps: int | None = None
    attempts: int = 0
    # how often somebody has begun to carry it out
    paused_s: float = 0.0
    # for which it stood still so that clicks were answered

    @property
    def is_done(self) -> bool:
        """Whether nothing more will happen."""
        return self.stage == "done"


def now() -> str:
    """The present moment as states have it."""
    return datetime.now(UTC).isoformat()


def read_state(folder: Path) -> RunState:
    """The state in a run's folder.

    Raises:
        NoSuchRun: There is none.
        TrainingUnavailable: It cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        known = {field.name for field in fields(RunState)}
        return RunState(**{key: value for key, value in content.items() if key in known})
    except FileNotFoundError as exc:
        raise NoSuchRun from exc
    except (OSError, ValueError, TypeError, AttributeError) as exc:
        raise TrainingUnavailable(
            "The state of a training run cannot be read. Its folder may be damaged.",
            detail=f"{folder}: {exc}",
        ) from exc


def write_state(folder: Path, run: RunState) -> None:
    """Replace the state in a run's folder; on the disk when this returns.

    Raises:
        OSError: It cannot be written; the earlier one stays.
    """
    path = folder / STATE
    unfinished = folder / f"{STATE}.{os.getpid()}.unfinished"
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(asdict(run), file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
