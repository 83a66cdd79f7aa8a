from __future__ import annotations

from typing import Any

import numpy as np

from bench.plots import plot_latency, plot_throughput, save_plots

CLICKS = [
    {"annotators": count, "pause": pause, "ours_ms": 20 * count, "p95_ms": 30 * count,
     "health_max_ms": 5 + count}
    for pause in ("without a pause", "a click a second")
    for count in (1, 16)
]  # fmt: skip
IMAGES = [{"workers": 0, "images_per_second": 14.2}, {"workers": 2, "images_per_second": 17.9}]


def test_latency_is_drawn_as_measured_with_its_units():
    (axes,) = plot_latency(CLICKS).axes
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert drawn["without a pause: median"] == [20, 320]
    assert drawn["a click a second: 95 % are faster"] == [30, 480]
    assert drawn["slowest /health, without a pause"] == [6, 21]
    assert axes.get_ylabel().endswith("ms")


def test_throughput_is_drawn_as_measured_with_its_units():
    (axes,) = plot_throughput(IMAGES).axes
    bars: Any = axes.patches
    assert [bar.get_height() for bar in bars] == [14.2, 17.9]
    assert axes.get_ylabel().endswith("images/s")


def test_small_pictures_are_written_of_what_was_measured_and_of_nothing_else(tmp_path):
    assert [path.name for path in save_plots(CLICKS, tmp_path)] == ["bench_latency.png"]
    save_plots([*CLICKS, *IMAGES, {"name": "health check"}], tmp_path)
    assert all(path.stat().st_size < 100_000 for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2
