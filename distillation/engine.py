"""The loop that every stage is trained by: read ``fit`` from top to bottom.

A stage is a module whose forward is the loss, with its data and its evaluation (``Stage``). The
engine adds what they have in common: devices and precision (devices.py), optimiser, schedule and
the average of the weights (optimisation.py), checkpoints, log, curves and sample sheets.

Resuming is exact: what a step draws depends on the seed, the step and the process alone, so a run
that was killed and started again ends with the same bits as one that was not.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from distillation.configs import EngineConfig
from distillation.devices import SealedBatch, launch, to_device
from distillation.optimisation import (
    build_optimizer,
    clip_gradient,
    learning_rate,
    update_average,
)
from distillation.progress import Progress, draw_curves
from distillation.recipe_files import save_recipe
from distillation.run_folder import (
    append_to_log,
    forget_after,
    load_checkpoint,
    make_folder,
    read_log,
    save_checkpoint,
    save_picture,
)
from edgesam_core.errors import RunError


class StepResult(NamedTuple):
    """What one step answers."""

    loss: torch.Tensor
    """A scalar to descend."""
    metrics: dict[str, torch.Tensor]
    """Scalars without gradient, for the log."""


@dataclass(frozen=True)
class Evaluation:
    """What the averaged student answers on held-back data."""

    scores: dict[str, float]
    sheet: np.ndarray | None = None
    """[H, W, 3] uint8 RGB sample answers."""


class Stage(nn.Module, ABC):
    """One of the paper's stages: what is trained, on what, and by which loss."""

    student: nn.Module
    """What is averaged, saved and evaluated; what learns has ``requires_grad``."""
    steps: int
    """Optimiser steps of the whole run."""

    @abstractmethod
    def forward(self, batch: Any) -> StepResult:
        """The loss of one batch, under the engine's precision."""

    @abstractmethod
    def batches(self, first_step: int, rank: int, world: int) -> Iterator[Any]:
        """One batch for each step from ``first_step`` on; it depends on seed, step and rank only.

        A dataclass of tensors and plain values; the engine moves the tensors to the device.
        """

    @abstractmethod
    def evaluate(self, averaged: nn.Module) -> Evaluation:
        """Ask the averaged student about held-back data."""

    @abstractmethod
    def weights(self, averaged: nn.Module) -> dict[str, torch.Tensor]:
        """What is kept of the averaged student, under official names."""


@dataclass
class _Run:
    """What changes from step to step, beside the modules themselves."""

    averaged: nn.Module
    step: int = 0
    from_weights: bool = False
    meters: dict[str, torch.Tensor] = field(default_factory=dict)


def fit(stage: Stage, config: EngineConfig, run: Path, *, from_weights: bool = False) -> None:
    """Train until the recipe ends; a run folder that holds a checkpoint is continued.

    Args:
        stage: What to train, with its weights as they are before the first step.
        config: The stage's recipe.
        run: Receives the files that run_folder.py lists.
        from_weights: Whether the stage starts from weights that were trained; the warm-up is then
            short.

    Raises:
        RunError: The checkpoint is another network's, the disk is full, or the loss is not finite.
    """
    fabric = launch(config)
    if fabric.is_global_zero:
        make_folder(run)
    optimizer: Any = build_optimizer(stage.student, config)
    wrapped, optimizer = fabric.setup(_Step(stage), optimizer)
    state = _Run(copy.deepcopy(stage.student).eval().requires_grad_(False))
    state.from_weights = from_weights
    resume(run, stage, state, optimizer)
    fabric.barrier()
    if fabric.is_global_zero:
        save_recipe(config, run / "recipe.yaml")
        forget_after(run, state.step)

    stage.train()
    progress = Progress(state.step, stage.steps, quiet=not fabric.is_global_zero)
    for batch in stage.batches(state.step, fabric.global_rank, fabric.world_size):
        seed_step(config.seed, state.step, fabric.global_rank)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, stage.steps, state.step, state.from_weights)
        loss, metrics = wrapped(SealedBatch(to_device(batch, fabric.device)))
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        clip_gradient(stage.student, config.clip_norm, state.step)
        optimizer.step()
        state.step += 1
        # At first a mean over few steps, so that the random beginning is soon forgotten.
        decay = min(config.ema_decay, state.step / (state.step + 10))
        update_average(state.averaged, stage.student, decay)
        update_meters(state.meters, {"loss": loss.detach(), **metrics})

        is_last = state.step == stage.steps
        if fabric.is_global_zero:
            if row := progress.step(state.step, state.meters):
                append_to_log(run, row)
            if state.step % config.evaluate_every == 0 or is_last:
                log_evaluation(run, stage, state)
            if state.step % config.save_every == 0 or is_last:
                save(run, stage, state, optimizer)
    fabric.barrier()
    progress.close()


class _Step(nn.Module):
    """The stage as Fabric wraps it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, sealed: SealedBatch) -> StepResult:
        result: StepResult = self.stage(sealed.batch)
        return result


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what a step draws its own, whatever was drawn before it."""
    (state,) = np.random.SeedSequence((seed, step, rank)).generate_state(1)
    torch.manual_seed(int(state))


def update_meters(meters: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    """Running means over about fifty steps, left on the device until somebody looks."""
    for name, value in values.items():
        meters[name] = torch.lerp(meters[name], value, 0.02) if name in meters else value.clone()


def log_evaluation(run: Path, stage: Stage, state: _Run) -> None:
    """Scores of the averaged student to the log, curves and its sample sheet as PNG."""
    torch.manual_seed(0)  # the next step seeds itself
    evaluation = stage.evaluate(state.averaged)
    stage.train()
    scores = {name: round(score, 4) for name, score in evaluation.scores.items()}
    append_to_log(run, {"step": state.step, "held_back": scores})
    save_picture(run / "curves.png", draw_curves(read_log(run)))
    if evaluation.sheet is not None:
        save_picture(run / f"samples_{state.step:06d}.png", evaluation.sheet)


def save(run: Path, stage: Stage, state: _Run, optimizer: torch.optim.Optimizer) -> None:
    """Write all that ``resume`` needs, and the averaged weights for everybody else."""
    checkpoint = {
        "step": state.step,
        "from_weights": state.from_weights,
        "meters": state.meters,
        "student": stage.student.state_dict(),
        "averaged": state.averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    save_checkpoint(run, checkpoint, stage.weights(state.averaged))


def resume(run: Path, stage: Stage, state: _Run, optimizer: torch.optim.Optimizer) -> None:
    """Take up the run's checkpoint, if there is one.

    Raises:
        RunError: It belongs to a network of another architecture.
    """
    checkpoint = load_checkpoint(run)
    if checkpoint is None:
        return
    try:
        stage.student.load_state_dict(checkpoint["student"])
        state.averaged.load_state_dict(checkpoint["averaged"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        state.step = int(checkpoint["step"])
    except (KeyError, RuntimeError, ValueError) as exc:
        raise RunError(
            f"{run / 'checkpoint.pt'} was written for another architecture or another choice of "
            f"what is trained. Use an empty run folder. ({str(exc)[:300]})"
        ) from exc
    state.from_weights = bool(checkpoint.get("from_weights", False))
    device = next(stage.student.parameters()).device
    state.meters = {k: v.to(device) for k, v in checkpoint.get("meters", {}).items()}
