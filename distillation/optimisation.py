"""How the weights move in a step: optimiser, learning rate, clipped gradient, and their average."""

from __future__ import annotations

import math

import torch
from torch import nn

from distillation.configs import EngineConfig
from distillation.muon import Muon, is_matrix
from edgesam_core.errors import RunError


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
