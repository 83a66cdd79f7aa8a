"""One frozen dataclass per stage; recipes are YAML files that fill it.

A recipe opens with the command, how long it takes on what, and the result to expect. The resolved
configuration is saved beside the weights.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgesam_core.errors import RunError


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one size."""

    steps: int
    """Optimiser steps."""
    size: int
    """S, the side of the training crops in pixels; a multiple of 64."""
    batch: int
    """Crops a step."""
    prompts: int
    """Prompts per crop; all are decoded in one call."""
    rounds: int
    """Most decoding rounds of a step (one to so many): the first prompt, then corrections."""
    box_share: float
    """Share of steps that start with boxes; the others start with a click."""
    procedural: float
    """Share of crops that are procedural scenes."""
    pasted: float
    """Share of crops with objects pasted onto a photo. The rest are labelled photos."""
    min_area: float
    """Smallest object asked for, as a share of the crop's area."""

    def __post_init__(self) -> None:
        """Refuse contradictions by name."""
        if self.size % 64:
            raise RunError(f"size: expected a multiple of 64, got {self.size}")
        if self.procedural + self.pasted > 1:
            raise RunError("procedural and pasted: together they must not exceed 1")


@dataclass(frozen=True)
class PromptStageConfig:
    """Prompts in the loop with masks as the target."""

    phases: tuple[Phase, ...]
    """Run one after the other under one learning-rate schedule."""
    set_weights: dict[str, float]
    """Data set folder -> how often it is drawn."""
    learning_rate: float = 1e-3
    """Peak of AdamW's, after the warm-up."""
    warmup_steps: int = 200
    """Steps over which the learning rate rises from zero."""
    decay_steps: int = 1000
    """Steps at the end over which it falls; before them it stays at the peak."""
    precision: str = "fp32"
    """"bf16": matrix products in bf16, for processors and GPUs that have it."""
    draws_prompts: bool = True
    """Whether prompts are drawn as a map, too (edgesam_core/nn/drawn_prompts.py)."""
    weight_decay: float = 0.05
    """Of matrices only; biases, norms and embeddings have none."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    ema_decay: float = 0.999
    """Of the average of the weights that is evaluated and exported."""
    box_jitter: float = 0.08
    """Standard deviation of a box's edge as a share of its side."""
    mask_input_share: float = 0.5
    """Share of later rounds that see the earlier logits as mask input."""
    iou_weight: float = 0.1
    """Weight of the squared error of the predicted IoU."""
    max_side: int = 640
    """Long side in pixels at which photos are kept in memory."""
    seed: int = 0
    """Of data, prompts and initialisation."""

    @property
    def steps(self) -> int:
        """Of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]


def load_recipe(path: Path) -> PromptStageConfig:
    """Read a recipe; unknown keys are refused.

    Raises:
        RunError: A key is unknown or missing.
    """
    fields: dict[str, Any] = yaml.safe_load(path.read_text())
    try:
        phases = tuple(Phase(**phase) for phase in fields.pop("phases"))
        return PromptStageConfig(phases=phases, **fields)
    except (KeyError, TypeError) as exc:
        raise RunError(f"{path.name}: {exc}. Compare it with distillation/configs.py.") from exc


def save_recipe(config: PromptStageConfig, path: Path) -> None:
    """Write the resolved configuration, so that a run can be repeated."""
    fields = dataclasses.asdict(config)
    fields["phases"] = [dataclasses.asdict(phase) for phase in config.phases]
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
