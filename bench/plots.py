"""The two pictures of docs/benchmark.md, from the rows of concurrency.py.

Colours are Okabe and Ito's, which people with any colour vision tell apart; lines differ in marker
and dashes too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#D55E00", "#0072B2")
HEALTH_COLOUR = "#009E73"
GREY = "#666666"

Row = Mapping[str, Any]


def save_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``bench_latency.png`` and ``bench_throughput.png``, each where it was measured.

    Args:
        rows: From ``concurrency.run``.
        folder: Exists.
    """
    written = []
    for name, key, plot in (
        ("bench_latency.png", "annotators", plot_latency),
        ("bench_throughput.png", "workers", plot_throughput),
    ):
        if chosen := [row for row in rows if key in row]:
            written.append(folder / name)
            plot(chosen).savefig(written[-1])
    return written


def plot_latency(rows: Sequence[Row]) -> Figure:
    """Milliseconds of a warm click by how many annotators click, and of the health check."""
    figure, axes = _figure()
    pauses = list(dict.fromkeys(row["pause"] for row in rows))
    for pause, colour in zip(pauses, COLOURS, strict=False):
        chosen = [row for row in rows if row["pause"] == pause]
        counts = [row["annotators"] for row in chosen]
        axes.plot(counts, [row["ours_ms"] for row in chosen], "-", color=colour, marker="o",
                  label=f"{pause}: median")  # fmt: skip
        axes.plot(counts, [row["p95_ms"] for row in chosen], "--", color=colour, marker="^",
                  label=f"{pause}: 95 % are faster")  # fmt: skip
    without_pause = [row for row in rows if row["pause"] == pauses[0]]
    axes.plot(
        [row["annotators"] for row in without_pause],
        [row["health_max_ms"] for row in without_pause],
        ":",
        color=HEALTH_COLOUR,
        marker="s",
        label=f"slowest /health, {pauses[0]}",
    )
    axes.set_xscale("log", base=2)
    counts = sorted({row["annotators"] for row in rows})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("annotators who click at the same time")
    axes.set_ylabel("answer of a warm click, HTTP included, ms")
    _finish(axes, "Latency of a click by concurrent annotators")
    return figure


def plot_throughput(rows: Sequence[Row]) -> Figure:
    """New images encoded a second by how many worker processes there are."""
    figure, axes = _figure()
    bars = axes.bar(
        [str(row["workers"]) for row in rows],
        [row["images_per_second"] for row in rows],
        width=0.5,
        color=COLOURS[1],
    )
    axes.bar_label(bars, fmt="%.1f", fontsize=9, color=GREY)
    axes.set_xlabel("worker processes on the same machine (0: the server encodes)")
    axes.set_ylabel("first clicks answered, new images/s")
    _finish(axes, "Throughput of new images by workers")
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.4), dpi=110, layout="constrained")
    return figure, figure.subplots()


def _finish(axes: Axes, title: str) -> None:
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8))
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", frameon=False, fontsize=8)
