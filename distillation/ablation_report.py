"""What an ablation has found: a table with mean and spread over seeds, and the same as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from distillation.ablation_trials import TRIALS, Trial
from distillation.run_folder import write_whole

BY_IOU = "click by IoU"
"""A click whose mask of four is chosen by the predicted IoU, and not by stability as in "click"."""

COLUMNS = ("box", "click", "click+1", "click+2", BY_IOU)

Row = dict[str, Any]
"""Content of a scores.json: "trial", "seed", "miou_percent" (column -> score), and "cpu_minutes" of
the process that finished the trial, without its worker."""


def read_rows(out: Path) -> list[Row]:
    """The finished trials of a folder."""
    return [json.loads(path.read_text()) for path in sorted(out.glob("seed_*/*/scores.json"))]


def save_summary(rows: Sequence[Row], out: Path) -> str:
    """Write the table, the numbers and the plot; returns the table."""
    table = to_markdown(rows)
    write_whole(out / "ablation.md", table.encode())
    write_whole(out / "ablation.json", json.dumps(list(rows), indent=1).encode())
    plot(rows).savefig(out / "ablation.png")
    return table


def to_markdown(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds, a row for every trial."""
    lines = [
        f"| student | {' | '.join(COLUMNS)} | seeds | CPU min | asks |",
        f"|---|{'---:|' * (len(COLUMNS) + 2)}---|",
    ]
    for trial in TRIALS:
        if own := _of(trial, rows):
            cells = [_spread(_measured(own, column)) for column in COLUMNS]
            minutes = np.mean([row["cpu_minutes"] for row in own])
            cells += [f"{len(own)}", f"{minutes:.0f}", trial.asks]
            lines.append(f"| {trial.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row]) -> Figure:
    """A panel for every column, a line for every trial, a dot for every seed, a bar at the mean."""
    trials = [trial for trial in TRIALS if _of(trial, rows)]
    figure = Figure(figsize=(13, 0.8 + 0.42 * len(trials)), layout="constrained", dpi=120)
    panels = figure.subplots(1, len(COLUMNS), sharey=True)
    for axes, column in zip(panels, COLUMNS, strict=True):
        for y, trial in enumerate(trials):
            if own := _measured(_of(trial, rows), column):
                axes.plot(own, [y] * len(own), "o", color="#0072B2", alpha=0.6, markersize=5)
                axes.plot([np.mean(own)] * 2, [y - 0.3, y + 0.3], color="#D55E00", linewidth=2)
        axes.set_title(column, fontsize=10)
        axes.set_xlabel("mIoU, %")
        axes.grid(axis="x", color="#dddddd")
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(range(len(trials)), [trial.name for trial in trials])
    panels[0].invert_yaxis()
    return figure


def _of(trial: Trial, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["trial"] == trial.name]


def _measured(rows: Sequence[Row], column: str) -> list[float]:
    """A column over seeds; a trial that proposes boxes has no rule to choose a mask by."""
    return [row["miou_percent"][column] for row in rows if column in row["miou_percent"]]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
