"""How far a run is, for the person who waits: a bar or a line now and then, and curves.

On a terminal a bar with the time that is left; elsewhere one line every fifty steps, of a short run
twenty in all.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

logger = logging.getLogger(__name__)

ROW_EVERY = 50
"""Steps between two rows of the log, at most."""

FEWEST_ROWS = 20
"""A run too short for so many has its rows closer together."""

NOT_DRAWN = frozenset({"step", "steps_per_s", "eta_min"})


class Progress:
    """Counts steps, shows them, and makes the rows of the log."""

    def __init__(self, first_step: int, steps: int, *, quiet: bool = False) -> None:
        """Start the clock.

        Args:
            first_step: Where the run goes on.
            steps: Where it ends.
            quiet: Show nothing: another process does.
        """
        self._first_step, self._steps, self._quiet = first_step, steps, quiet
        self._row_every = max(1, min(ROW_EVERY, steps // FEWEST_ROWS))
        self._started = time.monotonic()
        shown = not quiet and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=first_step, unit="step", disable=not shown)

    def step(self, step: int, meters: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
        """One step more; the row for the log when it is time for one."""
        self._bar.update()
        if step % self._row_every and step != self._steps:
            return None
        values = {name: round(meters[name].item(), 4) for name in sorted(meters)}
        self._bar.set_postfix(values, refresh=False)
        rate = (step - self._first_step) / (time.monotonic() - self._started)
        row = {"step": step, "steps_per_s": round(rate, 3), **values}
        row["eta_min"] = round((self._steps - step) / rate / 60, 1)
        if self._bar.disable and not self._quiet:
            logger.info("%s", row)
        return row

    def close(self) -> None:
        """Leave the bar as it is and end its line."""
        self._bar.close()


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The log as a picture: losses and errors above, what is better when higher below.

    Args:
        rows: As in ``log.jsonl``; a row with ``held_back`` is an evaluation.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    training = [row for row in rows if "held_back" not in row]
    evaluations = [{"step": row["step"], **row["held_back"]} for row in rows if "held_back" in row]
    for kind, style, some in (("training", ".-", training), ("held back", "o--", evaluations)):
        for name in sorted({name for row in some for name in row} - NOT_DRAWN):
            points = [(row["step"], row[name]) for row in some if name in row]
            axes = above if name.endswith(("loss", "error")) else below
            label = f"{name.replace('_', ' ')}, {kind}"
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8, ncols=2)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
