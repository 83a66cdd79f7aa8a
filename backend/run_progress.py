"""What a run's own files say of it, for people who wait: steps, losses, scores, the gate's verdict.

The training writes ``training/log.jsonl`` and ``training/plan.json``, the gate ``gate.json``, the
snapshot ``snapshot/snapshot.json``; all are read here and never written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NO_LOSSES = frozenset({"step", "steps_per_s", "eta_min", "held_back"})


@dataclass(frozen=True)
class Progress:
    """How far the training is."""

    step: int | None = None
    # None: no step was logged yet
    steps: int | None = None
    # of the whole training
    eta_min: float | None = None
    # as it was when the last step was logged
    losses: Mapping[str, float | None] = field(default_factory=dict)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    # looks at held-out tasks so far: ``step`` and scores by name


def progress_of(run: Path) -> Progress:
    """How far a run's training is; whatever cannot be read yet is left out."""
    rows = log_rows(run)
    steps = [row for row in rows if "held_back" not in row]
    looks = [row for row in rows if isinstance(row.get("held_back"), dict)]
    last = steps[-1] if steps else {}
    return Progress(
        step=max((row["step"] for row in rows), default=None),
        steps=(_read_object(run / "training" / "plan.json") or {}).get("steps"),
        eta_min=last.get("eta_min"),
        losses={name: value for name, value in last.items() if name not in _NO_LOSSES},
        held_out=[{"step": row["step"], **row["held_back"]} for row in looks],
    )


def log_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of the training's log; lines that a kill has torn are left out.

    What is no number (NaN, as of a training that diverges) is None, which JSON has a word for.
    """
    try:
        lines = (run / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line, parse_constant=lambda name: None)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def gate_of(run: Path) -> dict[str, Any] | None:
    """What the gate found; None where it has not finished."""
    return _read_object(run / "gate.json")


def snapshot_of(run: Path) -> dict[str, Any] | None:
    """What was learnt from, without the list of annotations; None where it is not taken yet."""
    snapshot = _read_object(run / "snapshot" / "snapshot.json")
    if snapshot is not None:
        snapshot.pop("annotation_ids", None)
    return snapshot


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
