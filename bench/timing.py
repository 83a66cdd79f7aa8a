"""Calls that take turns, so that a busy machine slows all of them: medians and 95th percentiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Times:
    """What calls of one kind took."""

    median_ms: float
    p95_ms: float
    # between the two slowest of a few, so close to the slowest where there were under twenty

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Of at least one call."""
        median, p95 = np.percentile(seconds, (50, 95)) * 1000
        return cls(float(median), float(p95))


def alternate(
    calls: Sequence[Callable[[], object]], repeats: int, *, warm_up: int = 1
) -> list[Times]:
    """Time each of several calls, called in turn.

    Args:
        calls: Our way of doing something, its peers.
        repeats: Rounds that count.
        warm_up: Rounds before them that do not.
    """
    rounds = [[seconds(call) for call in calls] for _ in range(warm_up + repeats)]
    return [Times.of(taken) for taken in zip(*rounds[warm_up:], strict=True)]


def seconds(call: Callable[[], object]) -> float:
    """What one call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
