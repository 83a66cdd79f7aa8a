"""The loop that every stage is trained by: read ``fit`` from top to bottom.

A stage is a module whose forward is the loss, with its data and its evaluation (``Stage``). The
engine adds what they have in common: devices and precision (Lightning Fabric), optimiser and
schedule, the average of the weights, checkpoints, log, curves and sample sheets.

Resuming is exact: what a step draws depends on the seed, the step and the process alone, so a run
that was killed and started again ends with the same bits as one that was not.

More processes, on one machine or several, are torchrun's business; each has a batch of its own and
the gradients are averaged:

    torchrun --nproc-per-node=2 -m distillation.prompt_stage RECIPE DATA_DIR RUN_DIR
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

from distillation.configs import EngineConfig, save_recipe
from distillation.muon import Muon, is_matrix
from distillation.progress import Progress, draw_curves
from distillation.run_folder import (
    append_to_log,
    forget_after,
    load_checkpoint,
    open_run,
    read_log,
    save_checkpoint,
    save_picture,
)
from edgesam_core.errors import RunError

logger = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """What one step answers."""

    loss: torch.Tensor
    """A scalar to descend."""
    metrics: dict[str, torch.Tensor]
    """Scalars without gradient, for the log."""


@dataclass(frozen=True)
class Evaluation:
    """A look at held-back data."""

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
        open_run(run)
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
        loss, metrics = wrapped(_Sealed(_to_device(batch, fabric.device)))
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
                look(run, stage, state)
            if state.step % config.save_every == 0 or is_last:
                save(run, stage, state, optimizer)
    fabric.barrier()
    progress.close()


def launch(config: EngineConfig) -> Fabric:
    """Fabric over the GPUs, or the CPU processes, that torchrun has started; over one without it.

    Which parameters a step uses depends on its prompts, so DDP has to look for the unused ones.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=local,
        num_nodes=world // local,
        strategy=DDPStrategy(find_unused_parameters=True) if world > 1 else "auto",
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
    )
    fabric.launch()
    if world > 1 and fabric.is_global_zero:
        logger.info("%d processes on %d machines", fabric.world_size, world // local)
    return fabric


def data_workers() -> int:
    """Worker processes that prepare the batches of each training process.

    One where the CPU trains, and does not want company; a share of its cores where a GPU does.
    """
    if not torch.cuda.is_available():
        return 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // processes - 1)


class _Sealed:
    """A batch that Fabric leaves alone: it would turn coordinates and targets to bf16, too."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch


class _Step(nn.Module):
    """The stage as Fabric wraps it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, sealed: _Sealed) -> StepResult:
        result: StepResult = self.stage(sealed.batch)
        return result


def _to_device(batch: Any, device: torch.device) -> Any:
    """The same dataclass with its tensors on the device."""
    tensors = {
        f.name: value.to(device, non_blocking=True)
        for f in dataclasses.fields(batch)
        if torch.is_tensor(value := getattr(batch, f.name))
    }
    return dataclasses.replace(batch, **tensors)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what a step draws its own, whatever was drawn before it."""
    (state,) = np.random.SeedSequence((seed, step, rank)).generate_state(1)
    torch.manual_seed(int(state))


def build_optimizer(student: nn.Module, config: EngineConfig) -> torch.optim.AdamW:
    """AdamW or Muon on what learns; no weight decay on vectors, embeddings and tokens."""
    orthogonal: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        if (
            parameter.ndim < 2
            or "embed" in name
            or name.endswith(("token.weight", "tokens.weight"))
        ):
            kept.append(parameter)
        elif config.optimizer == "muon" and is_matrix(parameter):
            orthogonal.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    betas = (0.9, config.beta2)
    if config.optimizer == "muon":
        groups.append(
            {"params": orthogonal, "weight_decay": config.weight_decay, "orthogonal": True}
        )
        return Muon(groups, lr=config.learning_rate, betas=betas)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas)


def learning_rate(config: EngineConfig, steps: int, step: int, from_weights: bool = False) -> float:
    """Linear warm-up, a plateau, and half a cosine down to a small share of the peak.

    The plateau ends ``decay_steps`` before the recipe does, so a run that was on it can be given
    more steps without having wasted a decay.
    """
    warmup = config.warmup_steps_from_weights if from_weights else config.warmup_steps
    warm = min(1.0, (step + 1) / warmup)
    left = min(1.0, (steps - step) / max(1, config.decay_steps))
    cosine = 0.5 * (1 - math.cos(math.pi * left))
    return config.learning_rate * warm * (config.final_share + (1 - config.final_share) * cosine)


def clip_gradient(student: nn.Module, clip_norm: float, step: int) -> None:
    """Shorten the gradient to at most ``clip_norm``.

    Raises:
        RunError: It is not finite; the weights are still those of the step before.
    """
    norm = nn.utils.clip_grad_norm_(student.parameters(), clip_norm)
    if not norm.isfinite():
        raise RunError(
            f"The gradient of step {step} is not finite. The last checkpoint is from before that: "
            "go on from it with a lower learning rate, or with precision: fp32."
        )


@torch.no_grad()
def update_average(averaged: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the average a little towards the student, BatchNorm's statistics included."""
    for mean, new in zip(
        averaged.state_dict().values(), student.state_dict().values(), strict=True
    ):
        if mean.dtype.is_floating_point:
            mean.lerp_(new, 1 - decay)
        else:
            mean.copy_(new)


def update_meters(meters: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    """Running means over about fifty steps, left on the device until somebody looks."""
    for name, value in values.items():
        meters[name] = torch.lerp(meters[name], value, 0.02) if name in meters else value.clone()


def look(run: Path, stage: Stage, state: _Run) -> None:
    """Evaluate the averaged student: scores to the log, curves and sample sheet as PNG."""
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
