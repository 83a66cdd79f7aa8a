"""The rule by which a challenger is promoted: read ``judge``.

Knows numbers only: what both versions made of the same objects, row by row (gate_rows.py asks
them). Every refusal is a sentence for the admin.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillation.bootstrap import paired_difference

COLUMNS = ("box", "click", "click_1", "click_2", "stored")
"""A box, a click, one and two corrections more, and what the annotators themselves did."""

FEWEST_TASKS = 3
"""With fewer held-out tasks nobody can say whether a version is better."""

ENOUGH_OBJECTS = 20
"""Of a label, to be judged on its own."""

FEWEST_HONOURED = 0.6
"""Share of masks that must lie where their stored prompts are; of honest ones nearly all do."""

FEWEST_ON_EDGES = 0.55
"""Share of masks that must end on an edge of their image. Of fifteen sets' honest masks 0.8 to 1.0
do (leaves of trees: 0.63), of masks shifted by a tenth of the image or of other images 0.1 to 0.5.
"""

ENOUGH_PROMPTS = 10
"""Stored prompts, from so many on that share means something."""

MARGIN = 0.02
"""Mean IoU that a label or the replay set may lose."""


@dataclass(frozen=True)
class Row:
    """What one bundle made of one object."""

    key: str
    """Which object, the same for both bundles."""
    group: int
    """Its task, or scene."""
    label: str
    ious: Mapping[str, float]
    """By column."""
    clicks: int | None = None
    """To ``ENOUGH_IOU``; None where it was not counted."""

    @property
    def score(self) -> float:
        """Mean over its prompts."""
        return float(np.mean(list(self.ious.values())))


def judge(
    incumbent: Sequence[Row],
    challenger: Sequence[Row],
    incumbent_replay: Sequence[Row],
    challenger_replay: Sequence[Row],
    *,
    margin: float = MARGIN,
    honoured: tuple[int, int] = (0, 0),
    on_edges: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """Promote only what is better with confidence and has forgotten nothing.

    Args:
        incumbent: Its answers on the held-out tasks.
        challenger: The other's, of the same objects in the same order.
        incumbent_replay: Its answers on the replay set.
        challenger_replay: The other's, in the same order.
        margin: Mean IoU that a label or the replay set may lose.
        honoured: Of the training tasks, see ``honoured_prompts``.
        on_edges: Of the training tasks, see ``masks_on_edges``.

    Returns:
        ``promote``, ``reason`` and the numbers of ``gate.json``.
    """
    held_out = compare(incumbent, challenger)
    labels = compare_labels(incumbent, challenger)
    replay = compare(incumbent_replay, challenger_replay)
    reason = (
        _too_few(held_out)
        or _mixed_up(*honoured)
        or _beside(*on_edges)
        or _not_better(held_out)
        or _label_lost(labels, margin)
        or _forgot(replay, margin)
    )
    return {
        "promote": not reason,
        "reason": reason or _better(held_out),
        "held_out": held_out,
        "labels": labels,
        "replay": {
            "objects": replay["objects"],
            "incumbent": replay["incumbent"].get("mean"),
            "challenger": replay["challenger"].get("mean"),
            "difference": replay["difference"],
            "interval": replay["interval"],
        },
        "clicks_to_85": {
            "incumbent": _mean([row.clicks for row in incumbent]),
            "challenger": _mean([row.clicks for row in challenger]),
        },
    }


def _better(held_out: Mapping[str, Any]) -> str:
    before, after = (100 * held_out[who]["mean"] for who in ("incumbent", "challenger"))
    low, high = (100 * end for end in held_out["interval"])
    return (
        f"The new version is better on {held_out['tasks']} tasks that it was not trained on: mean "
        f"IoU {after:.1f} % instead of {before:.1f} % (gain {after - before:.1f}, between "
        f"{low:.1f} and {high:.1f})."
    )


def _too_few(held_out: Mapping[str, Any]) -> str | None:
    tasks = held_out["tasks"]
    if tasks >= FEWEST_TASKS:
        return None
    return (
        f"Nobody can say whether the new version is better: {tasks} of the labelled tasks are held "
        f"out for measuring, at least {FEWEST_TASKS} are needed. Label more tasks."
    )


def _mixed_up(honoured: int, looked_at: int) -> str | None:
    if looked_at < ENOUGH_PROMPTS or honoured >= FEWEST_HONOURED * looked_at:
        return None
    return (
        f"Only {honoured} of {looked_at} masks that were looked at in the training tasks lie where "
        "the annotator clicked for them: regions were mixed up or moved. Check the annotations."
    )


def _beside(on_edges: int, looked_at: int) -> str | None:
    if looked_at < ENOUGH_OBJECTS or on_edges >= FEWEST_ON_EDGES * looked_at:
        return None
    return (
        f"Only {on_edges} of {looked_at} masks that were looked at in the training tasks end where "
        "the image shows an edge: they were moved, or belong to other images. Check the "
        "annotations."
    )


def _not_better(held_out: Mapping[str, Any]) -> str | None:
    low, high = (100 * end for end in held_out["interval"])
    if low > 0:
        return None
    before, after = (100 * held_out[who]["mean"] for who in ("incumbent", "challenger"))
    word = "worse" if high < 0 else "not better with confidence"
    return (
        f"The new version is {word} on the {held_out['tasks']} held-out tasks: mean IoU "
        f"{after:.1f} % instead of {before:.1f} % (difference {after - before:+.1f}, between "
        f"{low:+.1f} and {high:+.1f})."
    )


def _label_lost(labels: Mapping[str, Any], margin: float) -> str | None:
    for name, label in labels.items():
        if label["objects"] < ENOUGH_OBJECTS:
            continue
        if label["challenger"] < label["incumbent"] - margin:
            return (
                f"The new version is better on the whole, but worse for the label {name!r}: mean "
                f"IoU {100 * label['challenger']:.1f} % instead of "
                f"{100 * label['incumbent']:.1f} % on {label['objects']} objects."
            )
    return None


def _forgot(replay: Mapping[str, Any], margin: float) -> str | None:
    if replay["objects"] and replay["difference"] >= -margin:
        return None
    before, after = (100 * replay[who].get("mean", 0.0) for who in ("incumbent", "challenger"))
    return (
        "The new version fits this project's annotations, but no longer finds objects elsewhere: "
        f"mean IoU {after:.1f} % instead of {before:.1f} % on scenes whose masks are known "
        "exactly. Check that the masks lie on their objects."
    )


def compare(incumbent: Sequence[Row], challenger: Sequence[Row]) -> dict[str, Any]:
    """Means by column, and the paired difference of the objects' scores."""
    assert [row.key for row in incumbent] == [row.key for row in challenger]
    groups = [row.group for row in incumbent]
    differences = [b.score - a.score for a, b in zip(incumbent, challenger, strict=True)]
    mean, low, high = paired_difference(differences, groups)
    return {
        "objects": len(incumbent),
        "tasks": len(set(groups)),
        "incumbent": _means(incumbent),
        "challenger": _means(challenger),
        "difference": mean,
        "interval": [low, high],
    }


def compare_labels(incumbent: Sequence[Row], challenger: Sequence[Row]) -> dict[str, Any]:
    """Objects and mean scores of each label."""
    by_label: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for a, b in zip(incumbent, challenger, strict=True):
        by_label[a.label].append((a.score, b.score))
    return {
        name: {
            "objects": len(scores),
            "incumbent": float(np.mean([a for a, _ in scores])),
            "challenger": float(np.mean([b for _, b in scores])),
        }
        for name, scores in sorted(by_label.items())
    }


def _means(rows: Sequence[Row]) -> dict[str, float]:
    means = {
        column: _mean([row.ious[column] for row in rows if column in row.ious])
        for column in COLUMNS
    }
    known = {column: mean for column, mean in means.items() if mean is not None}
    return {**known, "mean": float(np.mean([row.score for row in rows]))} if rows else {}


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
