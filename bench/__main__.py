"""``python -m bench [NAME ...]``: run the modules of this folder, print a table and one JSON line.

Each of `MODULES` has ``run()``, which returns rows: dicts that all have a ``name``, what was
measured in a few words, and any of

    ours_ms     median milliseconds of ours
    p95_ms      their 95th percentile
    peer_ms     the same work done by the peer in the same run
    peer        who the peer is
    ratio       of a row in another unit, such as memory; else it is ours_ms / peer_ms
    goal        the largest ratio that is wanted
    note        anything else worth a glance

and may have more keys, which appear in the JSON only. Milliseconds are reported and ratios judged.
A ratio over its goal is MISSED, and says so in the table. One that is over twice its goal, or over
1.0 (slower than the peer), is a REGRESSION: with one of these the exit status is 1, else 0.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

MODULES = (
    "stages",
    "click",
    "second_look",
    "concurrency",
    "encode",
    "loss",
    "small_objects",
    "masks",
)

Row = Mapping[str, Any]
Verdict = Literal["", "MISSED", "REGRESSION"]


def ratio_of(row: Row) -> float | None:
    """The row's own ratio, or ours_ms / peer_ms; None where there is neither."""
    if row.get("ratio") is not None:
        return float(row["ratio"])
    if row.get("ours_ms") is None or not row.get("peer_ms"):
        return None
    return float(row["ours_ms"]) / float(row["peer_ms"])


def regression_limit(goal: float) -> float:
    """The ratio from which on a missed goal ends the benchmark with status 1."""
    return min(2 * goal, 1.0)


def verdict(row: Row) -> Verdict:
    """What is to be said of a row beside its goal; nothing where there is none."""
    ratio, goal = ratio_of(row), row.get("goal")
    if ratio is None or goal is None or ratio <= goal:
        return ""
    return "MISSED" if ratio <= regression_limit(goal) else "REGRESSION"


def table(rows: Sequence[Row]) -> str:
    """The rows for people, one line each, columns as wide as they must be."""
    lines: list[tuple[str, ...]] = [
        ("", "median ms", "p95 ms", "peer ms", "ratio", "goal", "", "peer; note")
    ]
    for row in rows:
        lines.append((
            str(row["name"]),
            *(_number(row.get(key)) for key in ("ours_ms", "p95_ms", "peer_ms")),
            _number(ratio_of(row)),
            _number(row.get("goal")),
            verdict(row),
            "; ".join(str(row[key]) for key in ("peer", "note") if row.get(key)),
        ))  # fmt: skip
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [
                name.ljust(widths[0]),
                *(n.rjust(width) for n, width in zip(numbers, widths[1:], strict=False)),
                said.ljust(widths[6]),
                note,
            ]
        ).rstrip()
        for name, *numbers, said, note in lines
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for, everything by default; the exit status says whether it regressed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure beside the peer.")
    parser.add_argument("name", nargs="*", help=f"one of: {', '.join(MODULES)}")
    chosen = parser.parse_args(argv).name or MODULES
    if unknown := sorted(set(chosen) - set(MODULES)):
        parser.error(f"no such benchmark: {', '.join(unknown)}")

    rows: list[dict[str, Any]] = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        for row in importlib.import_module(f"bench.{name}").run():
            rows.append({"module": name, **row, "ratio": ratio_of(row), "verdict": verdict(row)})
    print(table(rows))
    has_regressed = any(row["verdict"] == "REGRESSION" for row in rows)
    print(json.dumps({
        "python": platform.python_version(),
        "machine": platform.machine(),
        "passed": not has_regressed,
        "rows": rows,
    }))  # fmt: skip
    return int(has_regressed)


if __name__ == "__main__":
    sys.exit(main())
