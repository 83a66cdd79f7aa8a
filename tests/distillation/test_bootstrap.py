from __future__ import annotations

import numpy as np
import pytest

from distillation.bootstrap import paired_difference


def test_a_clear_gain_is_one_with_confidence() -> None:
    mean, low, high = paired_difference([0.1, 0.2, 0.15, 0.12, 0.18, 0.11], list("abcdef"))
    assert mean == pytest.approx(0.1433, abs=1e-4)
    assert 0 < low < mean < high


def test_noise_is_no_gain() -> None:
    noise = np.random.default_rng(3).normal(0, 0.1, 40)
    _, low, high = paired_difference(noise, range(40))
    assert low < 0 < high


def test_many_objects_of_few_tasks_are_not_many_observations() -> None:
    values = np.repeat([0.3, -0.1, 0.2, -0.05], 25)
    apart = paired_difference(values, range(100))
    together = paired_difference(values, np.repeat(range(4), 25).tolist())
    assert apart.low > 0 > together.low


def test_one_task_says_nothing_about_others() -> None:
    mean, low, high = paired_difference([0.2, 0.3], [7, 7])
    assert (mean, low, high) == (0.25, -np.inf, np.inf)


def test_nothing_has_no_mean() -> None:
    assert np.isnan(paired_difference([], [])).all()


def test_names_of_tasks_and_their_order_in_memory_do_not_matter() -> None:
    values = [0.1, 0.0, 0.3, -0.1]
    named = paired_difference(values, ["x", "y", "x", "z"])
    assert named == paired_difference(values, [900, 3, 900, 5])


@pytest.mark.parametrize("tasks", [3, 6, 12])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(tasks: int) -> None:
    rng = np.random.default_rng(0)
    below = above = 0
    for _ in range(400):
        group = rng.normal(0.05, 0.1, tasks)
        values = np.repeat(group, 4) + rng.normal(0, 0.05, 4 * tasks)
        _, low, high = paired_difference(values, np.repeat(range(tasks), 4).tolist())
        below, above = below + (high < 0.05), above + (low > 0.05)
    assert below / 400 < 0.05  # 0.025 in the long run
    assert above / 400 < 0.05
