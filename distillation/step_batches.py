"""A batch for every step of a run, from any step on, drawn by any number of worker processes."""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Self, TypeVar, cast

import cv2
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from edgesam_core.errors import EdgeSamError

BatchOfStep = TypeVar("BatchOfStep")


class StepBatches(IterableDataset[BatchOfStep]):
    """Batches in the order of their steps; each depends on seed, step and process only."""

    def __init__(self, steps: int) -> None:
        """From step 0 to the end of a run of so many, for the only process."""
        self.steps, self.first_step, self.rank, self.world = steps, 0, 0, 1

    @abstractmethod
    def draw_step(self, step: int) -> BatchOfStep:
        """The batch of a step."""

    def starting_at(self, step: int, rank: int = 0, world: int = 1) -> Self:
        """The same data from another step on, or for one process of several; nothing is copied."""
        batches = copy.copy(self)
        batches.first_step, batches.rank, batches.world = step, rank, world
        return batches

    def __iter__(self) -> Iterator[BatchOfStep]:
        """Worker w of n yields steps w, w + n, ..."""
        cv2.setNumThreads(1)
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.first_step + first, self.steps, stride):
            try:
                yield self.draw_step(step)
            except EdgeSamError as exc:
                if worker is None:
                    raise
                yield cast("Any", exc)  # raised in a worker, its sentence would end a traceback
                return


def draw_in_workers(batches: StepBatches[BatchOfStep]) -> Iterator[BatchOfStep]:
    """What ``batches`` yields, prepared ahead in worker processes.

    Raises:
        EdgeSamError: What ``draw_step`` raised.
    """
    loader = DataLoader(batches, batch_size=None, num_workers=_data_workers(), prefetch_factor=4)
    for batch in loader:
        if isinstance(batch, EdgeSamError):
            raise batch
        yield batch


def _data_workers() -> int:
    """Worker processes of each training process.

    One where the CPU trains, and does not want company; a share of its cores where a GPU does.
    """
    if not torch.cuda.is_available():
        return 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // processes - 1)
