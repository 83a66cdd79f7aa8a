"""``python -m bench [NAME ...]``: run the modules of this folder, print a table and one JSON line.

Each module has ``run()``, which returns rows: dicts that all have

    name        what was measured, in a few words
    ours_ms     median milliseconds of ours, or None where the row has none
    peer_ms     the same work done by the peer in the same run, or None
    peer        who the peer is, or ""
    limit       the largest ours_ms / peer_ms that is acceptable, or None
    note        anything else worth a glance, or ""

and may have more keys, which appear in the JSON only. A row in another unit (memory) has its figure
under a key of its own and in the note, and says itself with ``over`` whether it is over its limit.
Milliseconds are reported and ratios judged: the exit status is 1 if anything is over its limit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import platform
import sys
from collections.abc import Sequence
from typing import Any

import bench

Row = dict[str, Any]


def module_names() -> list[str]:
    """The benchmarks there are."""
    return sorted(m.name for m in pkgutil.iter_modules(bench.__path__) if m.name[0] != "_")


def within_limit(row: Row) -> bool:
    """False where the ratio to the peer is over the row's limit, or the row says so itself."""
    if row.get("over"):
        return False
    ratio = ratio_to_peer(row)
    return ratio is None or row.get("limit") is None or ratio <= row["limit"]


def ratio_to_peer(row: Row) -> float | None:
    """ours_ms / peer_ms, or None where one of the two was not measured."""
    if row.get("ours_ms") is None or not row.get("peer_ms"):
        return None
    return float(row["ours_ms"]) / float(row["peer_ms"])


def table(rows: Sequence[Row]) -> str:
    """The rows for people, one line each, columns as wide as they must be."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    lines = [("", "ours ms", "peer ms", "ratio", "limit", "", "peer; note")]
    for row in rows:
        lines.append((
            str(row["name"]),
            number(row.get("ours_ms"), ".2f"),
            number(row.get("peer_ms"), ".2f"),
            number(ratio_to_peer(row), ".2f"),
            number(row.get("limit"), ".2f"),
            "" if within_limit(row) else "OVER",
            "; ".join(str(row[key]) for key in ("peer", "note") if row.get(key)),
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])] + [line[i].rjust(widths[i]) for i in range(1, 6)] + [line[6]]
        ).rstrip()
        for line in lines
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for, everything by default; the exit status judges the ratios."""
    names = module_names()
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure beside the peer.")
    parser.add_argument("name", nargs="*", help=f"one of: {', '.join(names) or 'none yet'}")
    chosen = parser.parse_args(argv).name or names
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"no such benchmark: {', '.join(unknown)}")

    rows: list[Row] = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += [{"module": name, **row} for row in importlib.import_module(f"bench.{name}").run()]
    print(table(rows))
    passed = all(within_limit(row) for row in rows)
    print(json.dumps({
        "python": platform.python_version(),
        "machine": platform.machine(),
        "passed": passed,
        "rows": [{**row, "ratio": ratio_to_peer(row)} for row in rows],
    }))  # fmt: skip
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
