"""The measured numbers as two pictures: mIoU by clicks, and by the size of the object.

Colours are Okabe and Ito's, which people with any colour vision tell apart; lines differ in marker
and dashes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distillation.metrics import (
    COLUMNS,
    STARTS,
    Score,
    by_share,
    instance_counts,
    mean_iou_after_clicks,
    mean_ious,
)

COLOUR_OF_START = {"box": "#0072B2", "click": "#D55E00", "random": "#009E73"}
MARKER_OF_START = {"box": "s", "click": "o", "random": "^"}
NAME_OF_START = {"box": "box", "click": "click in the middle", "random": "click anywhere"}
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
GREY = "#666666"


def save_plots(scores: Sequence[Score], folder: Path) -> list[Path]:
    """Write ``miou_by_clicks.png`` and ``miou_by_size.png``.

    Args:
        scores: From ``evaluate``.
        folder: Exists.
    """
    written = [folder / "miou_by_clicks.png", folder / "miou_by_size.png"]
    plot_by_clicks(scores).savefig(written[0])
    plot_by_size(scores).savefig(written[1])
    return written


def plot_by_clicks(scores: Sequence[Score]) -> Figure:
    """MIoU after the first prompt and each corrective click; beside it up to 20 clicks, if asked.

    Methods that were never corrected (the baselines) are short lines at the first prompt.
    """
    means = mean_ious(score for score in scores if score.column in COLUMNS)
    after_clicks = mean_iou_after_clicks(scores)
    figure, (left, *rest) = _figure(2 if after_clicks else 1)
    methods = [method for method, row in means.items() if any("+" in column for column in row)]
    starts = [start for start in STARTS if any(start in means[method] for method in methods)]
    for method, row in means.items():
        for start in (start for start in STARTS if start in row):
            if method in methods:
                dashes = DASHES[methods.index(method) % len(DASHES)]
                _draw_corrections(left, row, start, dashes)
            else:
                _mark_baseline(left, method, start, row[start])
    left.set_xticks(range(3))
    left.set_xlim(-1.1 if len(means) > len(methods) else -0.1, 2.3)
    left.set_xlabel("corrective clicks")
    _finish(left, f"mIoU by clicks, {instance_counts(scores)['all']} objects")
    for start in starts:
        left.plot([], [], color=COLOUR_OF_START[start], marker=MARKER_OF_START[start],
                  label=NAME_OF_START[start])  # fmt: skip
    for index, method in enumerate(methods):
        left.plot([], [], DASHES[index % len(DASHES)], color=GREY, label=method)
    if after_clicks:
        _draw_many_clicks(rest[0], after_clicks)
    _add_legends(figure)
    return figure


def _draw_corrections(axes: Axes, row: dict[str, float], start: str, dashes: str) -> None:
    columns = [column for column in COLUMNS if column.split("+")[0] == start and column in row]
    axes.plot(
        range(len(columns)),
        [row[column] for column in columns],
        dashes,
        color=COLOUR_OF_START[start],
        marker=MARKER_OF_START[start],
    )
    at = (len(columns) - 1, row[columns[-1]])
    if dashes == DASHES[0]:
        axes.annotate(
            f"{at[1]:.1f}", at, (9, 0), textcoords="offset points", va="center",
            fontsize=8, color=COLOUR_OF_START[start],
        )  # fmt: skip


def _mark_baseline(axes: Axes, method: str, start: str, miou_percent: float) -> None:
    colour = COLOUR_OF_START[start]
    axes.plot([-0.1, 0.1], [miou_percent] * 2, color=colour, linewidth=1)
    axes.annotate(f"{method} {miou_percent:.1f}", (-0.12, miou_percent), ha="right", va="center",
                  fontsize=7, color=colour)  # fmt: skip


def _draw_many_clicks(axes: Axes, after_clicks: dict[str, list[float]]) -> None:
    for index, (method, means) in enumerate(after_clicks.items()):
        clicks = range(1, len(means) + 1)
        colour, dashes = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        axes.plot(clicks, means, dashes, color=colour, marker="o", label=method)
    for iou in (85, 90):
        axes.axhline(iou, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xticks((1, 5, 10, 15, 20))
    axes.set_xlabel("clicks, each in the middle of the thickest error")
    _finish(axes, "mIoU by clicks, none after 90 % IoU")


def plot_by_size(scores: Sequence[Score]) -> Figure:
    """MIoU of the first prompts by the object's share of the image.

    Methods that differ in later clicks only are drawn once.
    """
    groups = by_share(scores)
    counts = {name: instance_counts(group)["all"] for name, group in groups.items()}
    starts = [start for start in STARTS if any(score.column == start for score in scores)]
    methods = list(dict.fromkeys(score.method for score in scores if score.column in starts))
    figure, panels = _figure(max(len(starts), 1))
    for axes, start in zip(panels, starts, strict=False):
        means = [mean_ious(s for s in group if s.column == start) for group in groups.values()]
        drawn: list[list[float | None]] = []
        for index, method in enumerate(methods):
            values = [mean.get(method, {}).get(start) for mean in means]
            if values not in drawn and any(value is not None for value in values):
                drawn.append(values)
                axes.plot(
                    range(len(values)),
                    [float("nan") if value is None else value for value in values],
                    DASHES[index % len(DASHES)],
                    color=COLOURS[index % len(COLOURS)],
                    marker="o",
                    label=method,
                )
        axes.set_xticks(range(len(groups)), [f"{name}\n{counts[name]} objects" for name in groups])
        axes.set_xlabel("mask's share of the image")
        _finish(axes, f"mIoU by size: {NAME_OF_START[start]}")
    _add_legends(figure)
    return figure


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.6 * panels, 5.2), dpi=150, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _finish(axes: Axes, title: str) -> None:
    axes.set_ylim(0, 100)
    axes.set_ylabel("mIoU, %")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _add_legends(figure: Figure) -> None:
    """Below each panel, where no line can run through it."""
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, fontsize=8)
