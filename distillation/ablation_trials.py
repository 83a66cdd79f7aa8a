"""What an ablation compares: a recipe, and the kinds of student that leave parts of it out.

The table of ``TRIALS`` is what to read; ablation.py trains and measures them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from distillation.configs import EncoderStageConfig, GranularityStageConfig, PromptStageConfig
from distillation.recipe_files import build_config
from edgesam_core.errors import RunError
from edgesam_core.granularity import MergeRule


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """What is compared, and on what."""

    teacher: str
    """Checkpoint or bundle; the best at hand."""
    seeds: tuple[int, ...]
    """Each is a repetition of everything."""
    encoder: EncoderStageConfig
    """The first stage of every student; its ``steps`` are those of the shorter one."""
    prompts: PromptStageConfig
    """The full second stage; the trials leave parts of it out."""
    granularity: GranularityStageConfig
    """The third."""
    iou_weight: float
    """Of the IoU token's loss, in the trial that has one."""
    measured_sets: tuple[str, ...]
    """Sets of ``research_only``; even image ids are asked about."""
    measured_images: int
    """Of each set, at most."""


Recipe = EncoderStageConfig | PromptStageConfig | GranularityStageConfig


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A kind of student."""

    name: str
    asks: str
    """For the table: what it is there to show."""
    begins_as: str | None = None
    """Another trial, whose student it begins as; None: a new one (or, untrained, the teacher)."""
    recipe: Callable[[AblationConfig], Recipe] | None = None
    """The stage that is trained; None where another's student is only asked in another way."""
    merge_rule: MergeRule | None = None
    """How proposed boxes join single clicks; None where none do."""


def _longer(config: AblationConfig) -> EncoderStageConfig:
    return replace(config.encoder, steps=config.encoder.steps + config.prompts.steps)


def _without_corrections(config: AblationConfig) -> PromptStageConfig:
    phases = tuple(replace(phase, rounds=1) for phase in config.prompts.phases)
    return replace(config.prompts, phases=phases)


TEACHER = Trial(name="the teacher", asks="what all learn from; no training")

TRIALS = (
    TEACHER,
    Trial(
        name="encoder only",
        asks="where all begin",
        recipe=lambda config: config.encoder,
    ),
    Trial(
        name="encoder only, longer",
        asks="is it the steps?",
        recipe=_longer,
    ),
    Trial(
        name="prompts in the loop",
        asks="does the loop help, without corrections?",
        begins_as="encoder only",
        recipe=_without_corrections,
    ),
    Trial(
        name="with corrective clicks",
        asks="do corrections help?",
        begins_as="encoder only",
        recipe=lambda config: config.prompts,
    ),
    Trial(
        name="decoder frozen",
        asks="must the decoder learn?",
        begins_as="encoder only",
        recipe=lambda config: replace(config.prompts, decoder="frozen"),
    ),
    Trial(
        name="decoder by LoRA",
        asks="is a little enough?",
        begins_as="encoder only",
        recipe=lambda config: replace(config.prompts, decoder="lora"),
    ),
    Trial(
        name="IoU token distilled",
        asks="is its prediction worth following?",
        begins_as="encoder only",
        recipe=lambda config: replace(config.prompts, iou_weight=config.iou_weight),
    ),
    Trial(
        name="granularity prior, best",
        asks="does a proposed box help a click?",
        begins_as="with corrective clicks",
        recipe=lambda config: config.granularity,
        merge_rule="best",
    ),
    Trial(
        name="granularity prior, mean",
        asks="by the paper's rule?",
        begins_as="granularity prior, best",
        merge_rule="mean",
    ),
)


def load_ablation(path: Path) -> AblationConfig:
    """Read a recipe.

    Raises:
        RunError: The file cannot be read, or a key is unknown, missing or of another type.
    """
    try:
        fields: dict[str, Any] = dict(yaml.safe_load(path.read_text()))
        teacher = fields["teacher"]
        stages: dict[str, Any] = {
            "encoder": build_config(EncoderStageConfig, fields.pop("encoder"), teacher=teacher),
            "prompts": build_config(PromptStageConfig, fields.pop("prompts"), teacher=teacher),
            "granularity": build_config(GranularityStageConfig, fields.pop("granularity")),
        }
        for name in ("seeds", "measured_sets"):
            stages[name] = tuple(fields.pop(name))
        return build_config(AblationConfig, fields, **stages)
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError, RunError) as exc:
        reason = f"{exc} is missing" if isinstance(exc, KeyError) else exc
        raise RunError(
            f"{path.name}: {reason}. Compare it with distillation/ablation_trials.py."
        ) from exc
