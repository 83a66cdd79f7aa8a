from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

from bench import __main__ as bench_main
from bench import masks


def printed(
    rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    """Exit status of a benchmark that measured these rows, and the lines that it printed."""
    monkeypatch.setattr(masks, "run", lambda: rows)
    status = bench_main.main(["masks"])
    return status, capsys.readouterr().out.splitlines()


def row(ratio: float, goal: float | None) -> dict[str, Any]:
    return {"name": "encoder", "ours_ms": 100 * ratio, "peer_ms": 100.0, "goal": goal}


@pytest.mark.parametrize(
    ("ratio", "goal", "said", "status"),
    [
        pytest.param(0.62, 0.62, "", 0, id="met"),
        pytest.param(0.73, 0.62, "MISSED", 0, id="missed"),
        pytest.param(1.01, 0.62, "REGRESSION", 1, id="slower than the peer"),
        pytest.param(0.25, 0.125, "MISSED", 0, id="twice the goal"),
        pytest.param(0.26, 0.125, "REGRESSION", 1, id="over twice the goal"),
        pytest.param(7.0, None, "", 0, id="no goal"),
    ],
)
def test_a_missed_goal_is_shown_and_only_a_regression_fails(
    ratio, goal, said, status, monkeypatch, capsys
):
    told, (_, line, last) = printed([row(ratio, goal)], monkeypatch, capsys)
    assert told == status
    assert [word for word in ("MISSED", "REGRESSION") if word in line] == ([said] if said else [])
    assert json.loads(last)["passed"] is (status == 0)


def test_the_last_line_holds_every_figure_and_ratio(monkeypatch, capsys):
    rows = [row(0.5, 1.0) | {"p95_ms": 60.0, "gflops": 240.0}, {"name": "memory", "ratio": 0.4}]
    _, lines = printed(rows, monkeypatch, capsys)
    first, second = json.loads(lines[-1])["rows"]
    assert first["ratio"] == 0.5
    assert (first["ours_ms"], first["p95_ms"], first["gflops"]) == (50.0, 60.0, 240.0)
    assert (second["name"], second["ratio"], second["module"]) == ("memory", 0.4, "masks")


def test_a_benchmark_that_does_not_exist_is_refused_with_the_ones_that_do(capsys):
    with pytest.raises(SystemExit):
        bench_main.main(["mask"])
    assert "no such benchmark: mask" in capsys.readouterr().err


@pytest.mark.parametrize("name", bench_main.MODULES)
def test_every_benchmark_that_is_listed_can_be_run(name):
    assert callable(importlib.import_module(f"bench.{name}").run)
