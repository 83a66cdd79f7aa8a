"""What the effort of many annotations comes to: per week, label and version, or per version.

Data in, data out; effort.py counts, effort_rows.py keeps the counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from backend.effort_rows import AnnotationEffort, RegionEffort

BY_HAND = "by_hand"
"""In place of a version where no model had a part in a region."""


@dataclass(frozen=True)
class EffortRow:
    """One line of the status page."""

    week: str
    # ISO, such as 2026-W47, of the annotations' creation (UTC)
    label: str
    version: str | None
    # that suggested the regions; None: drawn by hand, and then the next but `regions` say nothing
    regions: int
    prompts_per_region: float
    untouched_share: float
    # 0..1
    mean_iou: float | None
    # suggestion with submitted mask, 0..1, of those that could be compared


@dataclass
class Total:
    """Sums over regions."""

    regions: int = 0
    prompts: int = 0
    untouched: int = 0
    iou_sum: float = 0.0
    iou_count: int = 0

    def add(self, region: RegionEffort) -> None:
        """Add a region."""
        self.regions += 1
        self.prompts += region.prompts
        self.untouched += region.untouched
        if region.iou is not None:
            self.iou_sum += region.iou
            self.iou_count += 1

    @property
    def mean_iou(self) -> float | None:
        """Of those regions that have one."""
        return self.iou_sum / self.iou_count if self.iou_count else None


def by_week(efforts: Iterable[AnnotationEffort]) -> list[EffortRow]:
    """The effort per week, label and version; the newest week first."""
    totals: dict[tuple[str, str, str], Total] = {}
    for effort in efforts:
        week = _week(effort.created_at)
        for region in effort.regions:
            key = week, region.label, region.version or ""
            totals.setdefault(key, Total()).add(region)
    rows = [_row(*key, total) for key, total in totals.items()]
    rows.sort(key=lambda row: (row.label, row.version or ""))
    return sorted(rows, key=lambda row: row.week, reverse=True)


def by_version(efforts: Iterable[AnnotationEffort]) -> dict[str, Total]:
    """The effort per version, and `BY_HAND`."""
    totals: dict[str, Total] = {}
    for effort in efforts:
        for region in effort.regions:
            totals.setdefault(region.version or BY_HAND, Total()).add(region)
    return totals


def _row(week: str, label: str, version: str, total: Total) -> EffortRow:
    return EffortRow(
        week=week,
        label=label,
        version=version or None,
        regions=total.regions,
        prompts_per_region=total.prompts / total.regions,
        untouched_share=total.untouched / total.regions,
        mean_iou=total.mean_iou,
    )


def _week(moment: str) -> str:
    """The ISO week of a moment; that of today where it cannot be read."""
    try:
        day = datetime.fromisoformat(moment)
    except ValueError:
        day = datetime.now(UTC)
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02}"
