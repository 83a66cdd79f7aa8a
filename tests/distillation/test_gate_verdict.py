"""Who may serve, from known numbers."""

from __future__ import annotations

import numpy as np
import pytest

from distillation.gate_verdict import ENOUGH_OBJECTS, Row, judge


def rows(
    change: float = 0.0, *, tasks: int = 6, label: str = "Car", noise: float = 0.02, start: int = 0
) -> list[Row]:
    luck = np.random.default_rng(1).normal(0, noise, (tasks, 5))
    return [
        Row(
            key=f"{label}/{start + 5 * task + i}",
            group=start + task,
            label=label,
            ious={"box": 0.6 + change + luck[task, i] * (change != 0), "click": 0.4 + change},
            clicks=4,
        )
        for task in range(tasks)
        for i in range(5)
    ]


def verdict(
    before: list[Row], after: list[Row], *, replay: float = 0.0, margin: float = 0.02
) -> tuple[bool, str]:
    known = rows(tasks=10, label="scene")
    said = judge(before, after, known, rows(replay, tasks=10, label="scene"), margin=margin)
    return said["promote"], said["reason"]


def test_a_version_that_is_better_is_promoted_and_the_reason_says_by_how_much() -> None:
    promote, reason = verdict(rows(), rows(0.1))
    assert promote
    assert "better on 6 tasks that it was not trained on" in reason
    assert "instead of 50.0 %" in reason


@pytest.mark.parametrize(
    ("change", "words"),
    [(0.0, "not better with confidence"), (-0.1, "is worse on the 6 held-out tasks")],
)
def test_a_version_that_is_not_better_is_kept_back(change: float, words: str) -> None:
    promote, reason = verdict(rows(), rows(change))
    assert not promote
    assert words in reason


def test_a_gain_that_may_be_luck_is_kept_back() -> None:
    promote, reason = verdict(rows(), rows(0.01, noise=0.2))
    assert not promote
    assert "not better with confidence" in reason


@pytest.mark.parametrize("tasks", [0, 1, 2])
def test_too_few_held_out_tasks_say_nothing(tasks: int) -> None:
    promote, reason = verdict(rows(tasks=tasks), rows(0.3, tasks=tasks))
    assert not promote
    assert reason.startswith("Nobody can say")
    assert f"{tasks} of the labelled tasks" in reason


def test_a_label_that_loses_keeps_the_version_back() -> None:
    before = rows(tasks=20) + rows(tasks=4, label="Tree", start=1000)
    after = rows(0.1, tasks=20) + rows(-0.05, tasks=4, label="Tree", start=1000)
    promote, reason = verdict(before, after)
    assert not promote
    assert "worse for the label 'Tree'" in reason
    assert verdict(before, after, margin=0.2)[0]


def test_a_label_with_few_objects_does_not_decide() -> None:
    few = ENOUGH_OBJECTS // 5 - 1
    before = rows(tasks=20) + rows(tasks=few, label="Tree", start=1000)
    after = rows(0.1, tasks=20) + rows(-0.05, tasks=few, label="Tree", start=1000)
    assert verdict(before, after)[0]


def test_a_version_that_forgot_is_kept_back_however_good_it_is_here() -> None:
    promote, reason = verdict(rows(), rows(0.4), replay=-0.03)
    assert not promote
    assert "no longer finds objects elsewhere" in reason
    assert "instead of 50.0 %" in reason


def test_masks_that_lie_elsewhere_than_their_clicks_keep_the_version_back() -> None:
    known = rows(tasks=10, label="scene")
    said = judge(rows(), rows(0.1), known, known, honoured=(5, 40))
    assert not said["promote"]
    assert "Only 5 of 40 masks" in said["reason"]
    for enough in ((39, 40), (0, 3), (0, 0)):
        assert judge(rows(), rows(0.1), known, known, honoured=enough)["promote"]


def test_masks_that_end_beside_their_edges_keep_the_version_back() -> None:
    known = rows(tasks=10, label="scene")
    said = judge(rows(), rows(0.1), known, known, on_edges=(9, 40))
    assert not said["promote"]
    assert "Only 9 of 40 masks" in said["reason"]
    for enough in ((30, 40), (2, 12), (0, 0)):
        assert judge(rows(), rows(0.1), known, known, on_edges=enough)["promote"]


def test_a_version_that_is_not_a_number_is_kept_back() -> None:
    broken = [Row(r.key, r.group, r.label, {"box": float("nan")}) for r in rows()]
    assert not verdict(rows(), broken)[0]
    known = rows(tasks=10, label="scene")
    lost = [Row(r.key, r.group, r.label, {"box": float("nan")}) for r in known]
    assert not judge(rows(), rows(0.1), known, lost)["promote"]
