"""A batch for every step of a run, from any step on, drawn by any number of worker processes."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from typing import Self, TypeVar

import cv2
from torch.utils.data import IterableDataset, get_worker_info

BatchOfStep = TypeVar("BatchOfStep")


class StepBatches(IterableDataset[BatchOfStep]):
    """Batches in the order of their steps; each depends on seed, step and rank only."""

    def __init__(self, steps: int) -> None:
        """From step 0 to the end of a run of so many, for the process of rank 0."""
        self.steps, self.first_step, self.rank = steps, 0, 0

    @abstractmethod
    def draw_step(self, step: int) -> BatchOfStep:
        """The batch of a step."""

    def starting_at(self, step: int, rank: int) -> Self:
        """The same data from another step on, or for another process; nothing is copied."""
        batches = copy.copy(self)
        batches.first_step, batches.rank = step, rank
        return batches

    def __iter__(self) -> Iterator[BatchOfStep]:
        """Worker w of n yields steps w, w + n, ..."""
        cv2.setNumThreads(1)
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.first_step + first, self.steps, stride):
            yield self.draw_step(step)
