"""The gate's numbers as a table: incumbent against challenger, for the status page.

The gate writes them, another program; whatever is missing or has another form is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backend.status_text import DASH, decimal, is_number, percent

_COLUMNS = {
    "mean": "All prompts",
    "box": "A box",
    "click": "One click",
    "click_1": "Two clicks",
    "click_2": "Three clicks",
    "stored": "The annotators' own prompts",
}


@dataclass(frozen=True)
class Comparison:
    """One row of the gate's table; everything as it is shown."""

    name: str
    incumbent: str
    challenger: str
    change: str
    is_loss: bool
    objects: str = ""
    interval: str = ""
    # of the change


def gate_table(gate: Mapping[str, Any]) -> list[tuple[str, list[Comparison]]]:
    """The groups of the table and their rows; without those that the gate did not measure.

    Args:
        gate: ``gate.json``, or nothing.
    """
    return [(name, rows) for name, rows in _groups(gate) if rows]


def _groups(gate: Mapping[str, Any]) -> Iterator[tuple[str, list[Comparison]]]:
    held_out, replay = _object(gate, "held_out"), _object(gate, "replay")
    before, after = _object(held_out, "incumbent"), _object(held_out, "challenger")
    tasks = held_out.get("tasks")
    yield (
        "Held-out tasks" + (f" ({tasks})" if isinstance(tasks, int) else ""),
        [
            _compare(name, before.get(key), after.get(key), held_out if key == "mean" else {})
            for key, name in _COLUMNS.items()
            if key in before or key in after
        ],
    )
    labels = _object(gate, "labels")
    rows = ((str(name), _object(labels, name)) for name in labels)
    yield (
        "Labels",
        [_compare(name, row.get("incumbent"), row.get("challenger"), row) for name, row in rows],
    )
    yield (
        "Elsewhere",
        [_compare("Drawn scenes", replay.get("incumbent"), replay.get("challenger"), replay)]
        if replay
        else [],
    )
    clicks = _object(gate, "clicks_to_85")
    yield "Work", [_compare_clicks(clicks)] if clicks else []


def _compare(name: str, before: Any, after: Any, measured: Mapping[str, Any]) -> Comparison:
    objects = measured.get("objects")
    change, is_loss = DASH, False
    if is_number(before) and is_number(after):
        points = 100 * (after - before)
        change, is_loss = f"{points:+.1f}", points <= -0.05
    return Comparison(
        name,
        percent(before),
        percent(after),
        change,
        is_loss,
        str(objects) if isinstance(objects, int) else "",
        _between(measured.get("interval")),
    )


def _compare_clicks(clicks: Mapping[str, Any]) -> Comparison:
    before, after = clicks.get("incumbent"), clicks.get("challenger")
    change, is_loss = DASH, False
    if is_number(before) and is_number(after):
        change, is_loss = f"{after - before:+.2f}", after - before >= 0.005
    name = "Clicks until an object has 85 % IoU"
    return Comparison(name, decimal(before), decimal(after), change, is_loss)


def _between(interval: Any) -> str:
    if not (isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))):
        return ""
    low, high = (100 * end for end in interval)
    return f"{low:+.1f} to {high:+.1f}"


def _object(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = holder.get(key)
    return value if isinstance(value, dict) else {}
