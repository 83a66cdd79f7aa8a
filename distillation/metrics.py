"""IoU of masks, and its means: by prompt, by method, by set, by size; and clicks needed.

A ``Score`` is one mask against the annotated one; all that is reported follows from scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgesam_core.arrays import Mask

STARTS = ("box", "click", "random")
"""First prompts: the annotated box, a click in the middle, a click anywhere on the object."""

COLUMNS = (
    "box", "click", "click+1", "click+2", "box+1", "box+2", "random", "random+1", "random+2",
)  # fmt: skip
"""Which prompt: the first one, then so many corrective clicks more."""

PHOTO_SETS = ("animals", "balloon", "bsds500", "coco_nc_multi", "staple_pantry", "tabletop_bin")
"""The sets of everyday photos among those of research_only."""

MAX_CLICKS = 20
"""Nobody clicks more often; an object that needs more has failed.

Source: RITM (arXiv 2102.06583), section 4, as in all work on interactive segmentation since.
"""

COCO_SIZES = (("small", 0, 32**2), ("medium", 32**2, 96**2), ("large", 96**2, np.inf))
"""Name, from, and below so many pixels. Source: cocodataset.org/#detection-eval."""

SHARES = (
    ("under 0.3 %", 0, 0.003),
    ("0.3 to 3 %", 0.003, 0.03),
    ("3 to 30 %", 0.03, 0.3),
    ("over 30 %", 0.3, np.inf),
)
"""Name, from, and below such a share of the image; COCO's limits are near the first two."""

Means = dict[str, dict[str, float]]
"""Method -> column -> mean IoU in per cent; a column that was not measured is absent."""


@dataclass(frozen=True)
class Score:
    """How well one method answered one prompt for one object."""

    set_name: str
    image_id: int
    annotation_id: int
    area_px: int
    """Of the annotated mask."""
    image_px: int
    """Of the whole image."""
    method: str
    column: str
    iou: float
    """0 to 1."""

    @property
    def instance(self) -> tuple[str, int]:
        """Which object of all that were measured."""
        return self.set_name, self.annotation_id


def mask_iou(prediction: Mask, truth: Mask) -> float:
    """Shared pixels by pixels of either, 0 to 1; NaN where both masks are empty."""
    either = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / either if either else float("nan")


def mean_ious(scores: Iterable[Score]) -> Means:
    """Mean over objects of every column that was measured, in per cent with two decimals.

    NaN (both masks empty) is left out, as in the paper's evaluation.
    """
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for score in scores:
        if not np.isnan(score.iou):
            groups[score.method, score.column].append(score.iou)
    means: Means = {}
    for (method, column), ious in groups.items():
        means.setdefault(method, {})[column] = round(100 * float(np.mean(ious)), 2)
    return means


def mean_ious_by_set(scores: Sequence[Score]) -> dict[str, Means]:
    """``mean_ious`` of everything, of the photo sets together, and of each set.

    The keys are "all", "photos" (only where every one of ``PHOTO_SETS`` was measured, and others
    beside them), and the names of the sets.
    """
    names = sorted({score.set_name for score in scores})
    tables = {"all": mean_ious(scores)}
    if set(PHOTO_SETS) < set(names):
        tables["photos"] = mean_ious(s for s in scores if s.set_name in PHOTO_SETS)
    if len(names) > 1:
        tables |= {name: mean_ious(s for s in scores if s.set_name == name) for name in names}
    return tables


def instance_counts(scores: Sequence[Score]) -> dict[str, int]:
    """How many objects stand behind each table of ``mean_ious_by_set``."""
    instances = {score.instance for score in scores}
    counts = {"all": len(instances)}
    counts["photos"] = sum(name in PHOTO_SETS for name, _ in instances)
    for name, _ in sorted(instances):
        counts[name] = counts.get(name, 0) + 1
    return counts


def by_coco_size(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The scores of small, medium and large objects, by pixels of the mask."""
    return _by_range(scores, COCO_SIZES, lambda score: score.area_px)


def by_share(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The scores of objects by their share of the image."""
    return _by_range(scores, SHARES, lambda score: score.area_px / score.image_px)


def _by_range(
    scores: Sequence[Score],
    ranges: Sequence[tuple[str, float, float]],
    size: Callable[[Score], float],
) -> dict[str, list[Score]]:
    groups = {name: [s for s in scores if low <= size(s) < high] for name, low, high in ranges}
    return {name: group for name, group in groups.items() if group}


def clicks_column(clicks: int) -> str:
    """Name of the column that holds the IoU after so many clicks and no box."""
    return f"after {clicks}"


def mean_iou_after_clicks(scores: Iterable[Score]) -> dict[str, list[float]]:
    """Method -> mean IoU in per cent after 1 to ``MAX_CLICKS`` clicks, where that was measured."""
    columns = [clicks_column(clicks) for clicks in range(1, MAX_CLICKS + 1)]
    return {
        method: [means[column] for column in columns]
        for method, means in mean_ious(scores).items()
        if columns[0] in means
    }


def clicks_needed(scores: Iterable[Score], iou: float) -> dict[str, dict[str, float]]:
    """Method -> mean number of clicks until an IoU is reached, and the share that never does.

    Args:
        scores: Of ``clicks_column`` columns; others are passed over.
        iou: 0 to 1.

    Returns:
        "clicks": the mean, where failures count as ``MAX_CLICKS``; "failed_percent": objects below
        the IoU after ``MAX_CLICKS`` clicks.
    """
    clicks_of = {clicks_column(clicks): clicks for clicks in range(1, MAX_CLICKS + 1)}
    # Per method and object, the fewest clicks that were enough.
    needed: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for score in scores:
        if score.column in clicks_of:
            clicks = clicks_of[score.column] if score.iou >= iou else np.inf
            fewest = needed[score.method].get(score.instance, np.inf)
            needed[score.method][score.instance] = min(clicks, fewest)
    return {
        method: {
            "clicks": round(float(np.minimum(list(counts.values()), MAX_CLICKS).mean()), 2),
            "failed_percent": round(100 * float(np.isinf(list(counts.values())).mean()), 2),
        }
        for method, counts in needed.items()
    }


def refines_with_mask_input(without: dict[str, float], with_logits: dict[str, float]) -> bool:
    """Whether earlier logits as mask input lower mIoU nowhere after one or two corrective clicks.

    Args:
        without: Column -> mean IoU with clicks only.
        with_logits: The same with the logits of the mask before as mask input.
    """
    corrected = [column for column in COLUMNS if "+" in column and column in with_logits]
    return all(with_logits[column] >= without[column] for column in corrected)


def to_markdown(tables: dict[str, Means], counts: dict[str, int]) -> str:
    """A row for every set and method, a column for every prompt; sets as in the two arguments."""
    measured = {column for means in tables.values() for row in means.values() for column in row}
    columns = [column for column in COLUMNS if column in measured]
    lines = [
        f"| set (objects) | mIoU, % | {' | '.join(columns)} |",
        f"|---|---|{'---:|' * len(columns)}",
    ]
    for name, means in tables.items():
        for method, row in means.items():
            cells = [f"{row[column]:.1f}" if column in row else "-" for column in columns]
            if set(cells) != {"-"}:
                lines.append(f"| {name} ({counts[name]}) | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def clicks_to_markdown(needed: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row for every method: clicks needed and failures, for every IoU of ``clicks_needed``.

    Args:
        needed: IoU in per cent, as text -> what ``clicks_needed`` says.
    """
    names = " | ".join(f"clicks to {iou} % IoU | never" for iou in needed)
    lines = [f"| clicks needed | {names} |", f"|---|{'---:|' * 2 * len(needed)}"]
    for method in next(iter(needed.values())):
        rows = [of_method[method] for of_method in needed.values()]
        cells = " | ".join(f"{row['clicks']:.2f} | {row['failed_percent']:.1f} %" for row in rows)
        lines.append(f"| {method} | {cells} |")
    return "\n".join(lines) + "\n"
