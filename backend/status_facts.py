"""What the status page says of a project: who is served, which versions there are, how a run goes.

Data in, data out, for the templates of status_page.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.gate_table import Comparison, gate_table
from backend.run_progress import Progress, gate_of, progress_of, snapshot_of
from backend.run_state import RunState
from backend.runs import Doing
from backend.status_text import percent, words
from backend.versions import Change, served_before

CURVES = "training/curves.png"

_GATE_PICTURE = re.compile(r"gate/\d{4}\.png", re.ASCII)
_STAGES = ("queued", "snapshot", "training", "gate", "done")


@dataclass(frozen=True)
class Served:
    """What a project is served now."""

    version: str
    is_own: bool
    # the model that the server was started with
    since: str | None
    # None: from the beginning
    event: str
    # what happened then, as the history has it
    why: str


@dataclass(frozen=True)
class ServableVersion:
    """A version, and what became of it in this project."""

    version: str
    is_own: bool
    is_served: bool
    was_refused: bool
    # and never promoted since
    added: str | None
    # None: it is the server's own model


@dataclass(frozen=True)
class RunFacts:
    """One run as the page shows it."""

    run: RunState
    doing: Doing
    stages: list[tuple[str, str]]
    # name, and "past", "present" or "future"
    progress: Progress
    percent: int | None
    # of the training's steps
    held_out: list[list[str]]
    # a head and a row for each look; empty where there was none
    snapshot: Mapping[str, Any]
    reason: str
    # the gate's sentence, or why the run ended
    gate: Mapping[str, Any]
    comparisons: list[tuple[str, list[Comparison]]]
    # by group
    pictures: list[str]
    # before and after, names that `pictures_of` knows
    has_curves: bool


# --- who is served ---


def served_now(current: str | None, own: str, history: Sequence[Change]) -> Served:
    """What a project is served, since when and why.

    Args:
        current: As `Versions.current`.
        own: Version of the server's own model.
        history: The project's, oldest first.
    """
    for change in reversed(history):
        if change.event in ("promoted", "rolled back") and change.version == (current or ""):
            return Served(
                current or own, current in (None, own), change.at, change.event, change.why
            )
    why = "It is the model that the server was started with; no other was promoted."
    return Served(current or own, current in (None, own), None, "", "" if current else why)


def rollback_target(current: str | None, own: str, history: Sequence[Change]) -> str | None:
    """The version that a rollback would serve; None where nothing was served before."""
    story = served_before(history, current)
    return story[-1] or own if story else None


def servable_versions(
    servable: Sequence[str], current: str | None, own: str, history: Sequence[Change]
) -> list[ServableVersion]:
    """The versions that a project could be served, newest first."""
    found = []
    for version in reversed(servable):
        told = [change for change in history if change.version == version]
        verdicts = [change.event for change in told if change.event in ("promoted", "refused")]
        is_own = version == own
        found.append(
            ServableVersion(
                version,
                is_own,
                is_served=version == (current or own),
                was_refused=verdicts[-1:] == ["refused"],
                added=None if is_own else next((c.at for c in told if c.event == "added"), None),
            )
        )
    return found


# --- a run ---


def run_facts(run: RunState, folder: Path, doing: Doing) -> RunFacts:
    """A run as the page shows it; nothing of its files has to be there."""
    progress, gate = progress_of(folder), gate_of(folder) or {}
    step, steps = progress.step, progress.steps
    is_known = isinstance(steps, int) and steps > 0
    percent = min(100, 100 * (step or 0) // steps) if is_known and steps else None
    pictures = pictures_of(folder)
    return RunFacts(
        run,
        doing,
        stages=_stages(run),
        progress=progress,
        percent=percent,
        held_out=_looks(progress.held_out),
        snapshot=snapshot_of(folder) or {},
        reason=run.reason or str(gate.get("reason", "")),
        gate=gate,
        comparisons=gate_table(gate),
        pictures=[name for name in pictures if name != CURVES],
        has_curves=CURVES in pictures,
    )


def pictures_of(folder: Path) -> list[str]:
    """Names of a run's pictures, relative to its folder: all that may be served of it."""
    named = (gate_of(folder) or {}).get("pictures")
    names = [CURVES]
    if isinstance(named, list):
        names += [name for name in named if isinstance(name, str) and _GATE_PICTURE.fullmatch(name)]
    return [name for name in dict.fromkeys(names) if (folder / name).is_file()]


def _stages(run: RunState) -> list[tuple[str, str]]:
    if run.outcome in ("failed", "cancelled") or run.stage not in _STAGES:
        return []  # nobody knows how far it came
    present = _STAGES.index(run.stage)
    whens = ["past" if i < present else "future" for i in range(len(_STAGES))]
    whens[present] = "past" if run.is_done else "present"
    return list(zip(_STAGES, whens, strict=True))


def _looks(looks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    names = sorted({name for look in looks for name in look} - {"step"})
    if not names:
        return []
    rows = [[str(look["step"]), *(percent(look.get(name)) for name in names)] for look in looks]
    return [["step", *(words(name) for name in names)], *rows]
