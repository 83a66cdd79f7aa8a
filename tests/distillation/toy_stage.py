"""A stage that takes a millisecond a step, to see what the engine does with one.

    python -m tests.distillation.toy_stage RUN STEPS [--slow] [--die-in-save N] [--no-noise]
    torchrun --nproc-per-node=2 -m tests.distillation.toy_stage RUN STEPS --no-noise

With two processes each draws its half of the same eight examples, and leaves its own student in
``RUN/rank_N.pt``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distillation import run_folder
from distillation.configs import EngineConfig
from distillation.engine import Evaluation, Stage, StepResult, fit

CONFIG = EngineConfig(warmup_steps=5, decay_steps=20, save_every=5, evaluate_every=1000)
EXAMPLES = 8


@dataclass(frozen=True)
class Examples:
    inputs: torch.Tensor
    step: int


class ToyStage(Stage):
    """Learns to add up six numbers, some of which are hidden from it at random."""

    def __init__(self, steps: int, *, noise: bool = True, step_s: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(6, 32), nn.LayerNorm(32), nn.Linear(32, 1))
        self.steps, self.noise, self.step_s = steps, noise, step_s
        self.losses: list[float] = []

    def forward(self, batch: Examples) -> StepResult:
        shown = batch.inputs
        if self.noise:
            shown = shown * (torch.rand_like(shown) > 0.2)
        error = self.student(shown)[:, 0] - batch.inputs.sum(1)
        self.losses.append(error.square().mean().item())
        return StepResult(error.square().mean(), {"click_iou": error.detach().abs().mean()})

    def batches(self, first_step: int, rank: int, world: int) -> Iterator[Examples]:
        share = EXAMPLES // world
        for step in itertools.count(first_step):
            if step == self.steps:
                return
            time.sleep(self.step_s)
            inputs = np.random.default_rng(step).normal(size=(EXAMPLES, 6)).astype(np.float32)
            yield Examples(torch.from_numpy(inputs[rank * share : (rank + 1) * share]), step)

    def evaluate(self, averaged: nn.Module) -> Evaluation:
        error = averaged(torch.ones(1, 6)).item() - 6
        return Evaluation({"box_iou": error}, np.zeros((4, 4, 3), np.uint8))

    def weights(self, averaged: nn.Module) -> dict[str, torch.Tensor]:
        return averaged.state_dict()


def die_in_save(number: int) -> None:
    """Kill this process when the n-th checkpoint is half written."""
    flush, seen = os.fsync, itertools.count(1)

    def torn_flush(fd: Any) -> None:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        if name.startswith(run_folder.CHECKPOINT) and next(seen) == number:
            os.ftruncate(fd, os.fstat(fd).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        flush(fd)

    os.fsync = torn_flush


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--no-noise", action="store_true")
    parser.add_argument("--die-in-save", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.die_in_save:
        die_in_save(args.die_in_save)
    stage = ToyStage(args.steps, noise=not args.no_noise, step_s=0.02 if args.slow else 0.0)
    fit(stage, CONFIG, args.run)
    torch.save(stage.student.state_dict(), args.run / f"rank_{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    main()
