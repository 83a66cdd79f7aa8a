"""IoU of masks, and its means: by prompt, by method, by set.

A ``Score`` is one mask against the annotated one; all that is reported are means over scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgesam_core.arrays import Mask

COLUMNS = ("box", "click", "click+1", "click+2", "box+1", "box+2")
"""Which prompt: a box or a centre click, then so many corrective clicks more."""

PHOTO_SETS = ("animals", "balloon", "bsds500", "coco_nc_multi", "staple_pantry", "tabletop_bin")
"""The sets of everyday photos among those of research_only."""

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
    method: str
    column: str
    iou: float
    """0 to 1."""


def mask_iou(prediction: Mask, truth: Mask) -> float:
    """Shared pixels by pixels of either, 0 to 1; NaN where both masks are empty."""
    either = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / either if either else float("nan")


def mean_ious(scores: Iterable[Score]) -> Means:
    """The mean over instances (not over images or sets), in per cent; NaN is left out."""
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

    The keys are "all", "photos" (only where every one of ``PHOTO_SETS`` was measured), and the
    names of the sets.
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
    instances = {(s.set_name, s.annotation_id) for s in scores}
    counts = {"all": len(instances)}
    counts["photos"] = sum(name in PHOTO_SETS for name, _ in instances)
    for name, _ in sorted(instances):
        counts[name] = counts.get(name, 0) + 1
    return counts


def refines_with_mask_input(without: dict[str, float], with_logits: dict[str, float]) -> bool:
    """Whether earlier logits as mask input lower mIoU nowhere after one or two corrective clicks.

    Args:
        without: Column -> mean IoU with clicks only.
        with_logits: The same with the logits of the mask before as mask input.
    """
    corrected = [column for column in COLUMNS if "+" in column]
    return all(with_logits[column] >= without[column] for column in corrected)


def to_markdown(tables: dict[str, Means], counts: dict[str, int]) -> str:
    """A row for every set and method, a column for every prompt; sets as in the two arguments."""
    lines = [
        f"| set (objects) | mIoU, % | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---:|' * len(COLUMNS)}",
    ]
    for name, means in tables.items():
        for method, row in means.items():
            cells = [f"{row[column]:.1f}" if column in row else "-" for column in COLUMNS]
            lines.append(f"| {name} ({counts[name]}) | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
