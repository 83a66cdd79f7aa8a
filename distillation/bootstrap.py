"""Is a mean difference luck? Paired bootstrap over tasks.

Two models answer the same prompts, so what is drawn again and again is the difference of a task's
objects. Whole tasks are drawn, since the objects of one image are right or wrong together.

Sources:
    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 6 and 13 (percentile
    interval); Hesterberg, "What Teachers Should Know About the Bootstrap" (arXiv 1411.5279),
    section 3.4: with few tasks the interval is too narrow, by sqrt((n - 1) / n) and by what
    Student's t is wider than the normal distribution; Abramowitz and Stegun, 26.7.5, for that.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000
"""The ends of the interval then move by about a twentieth of its width from seed to seed."""


class Difference(NamedTuple):
    """A mean difference and how far it may be off."""

    mean: float
    low: float
    high: float


def paired_difference(
    differences: Sequence[float] | npt.NDArray[np.float64],
    groups: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Mean of the differences with its interval; all of one group are drawn together.

    Args:
        differences: One per object, challenger minus incumbent.
        groups: Which task each belongs to.
        confidence: Share of the resampled means between the ends.
        seed: The same seed gives the same interval.

    Returns:
        NaN three times where there is nothing; an endless interval where all objects are of one
        group, which says nothing about other tasks.
    """
    if not len(differences):
        return Difference(np.nan, np.nan, np.nan)
    values = np.asarray(differences, np.float64)
    number_of = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    member = np.array([number_of[group] for group in groups])
    sums = np.bincount(member, weights=values)
    counts = np.bincount(member)
    number = len(counts)
    mean = float(values.mean())
    if number < 2:
        return Difference(mean, -np.inf, np.inf)
    drawn = np.random.default_rng(seed).integers(number, size=(RESAMPLES, number))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    widened = np.sqrt(number / (number - 1)) * _t_over_normal(tail, number - 1)
    return Difference(
        mean, float(mean + widened * (low - mean)), float(mean + widened * (high - mean))
    )


def _t_over_normal(tail: float, degrees: int) -> float:
    """How much farther out Student's t leaves a share in one tail, within 3 % from 2 degrees on."""
    z = NormalDist().inv_cdf(1 - tail)
    terms = (
        (z**2 + 1) / 4,
        (5 * z**4 + 16 * z**2 + 3) / 96,
        (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / 384,
        (79 * z**8 + 776 * z**6 + 1482 * z**4 - 1920 * z**2 - 945) / 92160,
    )
    return 1 + sum(term / degrees**power for power, term in enumerate(terms, start=1))
