"""One frozen dataclass per stage; recipes are YAML files that fill it (recipe_files.py).

A stage's configuration is the engine's (``EngineConfig``) with the stage's own fields added, so a
recipe is one flat table. It opens with the command, how long it takes on what, and the result to
expect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgesam_core.errors import RunError
from edgesam_core.nn.repvit import Trunk


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine needs of every stage: optimiser, schedule, precision, how often to save."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """"muon": matrices learn by it (muon.py), all else by AdamW."""
    learning_rate: float = 1e-3
    """The peak, after the warm-up."""
    warmup_steps: int = 200
    """Steps over which the learning rate rises from zero."""
    warmup_steps_from_weights: int = 50
    """The same where the run starts from weights instead of random ones."""
    decay_steps: int = 1000
    """Steps at the end over which it falls; before them it stays at the peak."""
    final_share: float = 0.01
    """Share of the peak that is left at the end."""
    weight_decay: float = 0.05
    """Of matrices only; biases, norms and embeddings have none."""
    beta2: float = 0.99
    """AdamW's memory of squared gradients; 0.999 in the paper, too slow for short runs."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    ema_decay: float = 0.999
    """Of the average of the weights that is evaluated and exported."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """"bf16": matrix products in bf16, for processors and GPUs that have it."""
    seed: int = 0
    """Of data, prompts and initialisation."""
    evaluate_every: int = 500
    """Steps between two evaluations on held-back images; the last step is always evaluated."""
    save_every: int = 100
    """Steps between two checkpoints: so many are done again after a kill at the worst moment."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, by name."""
        if self.optimizer not in ("adamw", "muon"):
            raise RunError(f"optimizer: expected adamw or muon, got {self.optimizer}")
        if self.precision not in ("fp32", "bf16"):
            raise RunError(f"precision: expected fp32 or bf16, got {self.precision}")
        _check_positive(
            self, "evaluate_every", "save_every", "warmup_steps", "warmup_steps_from_weights"
        )


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one size."""

    steps: int
    """Optimiser steps."""
    size: int
    """S, the side of the training crops in pixels; a multiple of 64."""
    batch: int
    """Crops a step, of each process."""
    prompts: int
    """Prompts per crop; all are decoded in one call."""
    rounds: int
    """Most decoding rounds of a step: the first prompt, then corrections."""
    box_share: float
    """Share of steps that start with boxes; the others start with a click."""
    procedural: float
    """Share of crops that are procedural scenes."""
    pasted: float
    """Share of crops with objects pasted onto a photo. The rest are labelled photos."""
    min_area: float
    """Smallest object asked for, as a share of the crop's area."""
    fewest_rounds: int = 1
    """Fewest decoding rounds of a step; as many as ``rounds`` in the paper."""
    oblong: float = 0.0
    """Share of steps whose crops are not square: what a graph without padding will be served."""

    def __post_init__(self) -> None:
        """Refuse contradictions by name."""
        _check_size(self.size)
        _check_positive(self, "steps", "batch", "prompts")
        if not 1 <= self.fewest_rounds <= self.rounds:
            raise RunError("fewest_rounds: expected at least 1 and at most rounds")
        if self.procedural + self.pasted > 1:
            raise RunError("procedural and pasted: together they must not exceed 1")


@dataclass(frozen=True, kw_only=True)
class PromptStageConfig(EngineConfig):
    """Prompts in the loop."""

    phases: tuple[Phase, ...]
    """Run one after the other under one learning-rate schedule."""
    set_weights: dict[str, float]
    """Data set folder -> how often it is drawn."""
    teacher: str = "masks"
    """"masks", or the path of a checkpoint of SAM's family (teachers.py)."""
    teacher_input_size: int | None = None
    """Of an EdgeSAM, which takes any; None: what its bundle is served at, 1024 for a checkpoint."""
    starts_from_teacher: bool = False
    """Whether prompt encoder and mask decoder begin as the teacher's."""
    trunk: Trunk = "repvit_m1"
    """Of the student's image encoder; "repvit_m2_3" is a larger student, to teach the small one."""
    decoder: Literal["trained", "frozen", "lora"] = "trained"
    """Whether the mask decoder learns, stays as it is, or learns through low-rank additions."""
    lora_rank: int = 16
    """Rank of those additions to its query and value projections."""
    prompt_encoder: Literal["trained", "frozen"] = "trained"
    """Whether the prompt encoder learns; frozen in the paper, where it is SAM's."""
    draws_prompts: bool = True
    """Whether prompts are drawn as a map, too (edgesam_core/nn/drawn_prompts.py)."""
    box_jitter: float = 0.08
    """Standard deviation of a box's edge as a share of its side."""
    mask_input_share: float = 0.5
    """Share of later rounds that see the earlier logits as mask input."""
    iou_weight: float = 0.1
    """Weight of the squared error of the predicted IoU; what it is compared with is losses.py's."""
    hard_mask_weighting: bool = False
    """Whether masks count more on which the student lags behind its teacher (TinySAM)."""
    max_side: int = 640
    """Long side in pixels at which photos are kept in memory."""
    held_back: int = 32
    """Held-back images that an evaluation asks about."""

    def __post_init__(self) -> None:
        """Refuse contradictions by name."""
        super().__post_init__()
        if self.decoder not in ("trained", "frozen", "lora"):
            raise RunError(f"decoder: expected trained, frozen or lora, got {self.decoder}")
        if self.prompt_encoder not in ("trained", "frozen"):
            raise RunError(f"prompt_encoder: expected trained or frozen, got {self.prompt_encoder}")
        if self.teacher == "masks" and (self.starts_from_teacher or self.hard_mask_weighting):
            raise RunError(
                "starts_from_teacher and hard_mask_weighting: both need a network as the teacher"
            )
        if not self.phases or not self.set_weights:
            raise RunError("phases and set_weights: both must name something")

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


@dataclass(frozen=True, kw_only=True)
class EncoderStageConfig(EngineConfig):
    """Encoder only, on a teacher's stored embeddings."""

    steps: int
    """Optimiser steps; an epoch has as many as photos / (batch x processes)."""
    teacher: str
    """Whose embeddings are expected: the path of its checkpoint, or only the file's name."""
    size: int = 1024
    """S, the student's input in pixels; the teacher's must be a multiple of it."""
    batch: int = 8
    """Photos a step, of each process."""
    trunk: Trunk = "repvit_m1"
    """The student's backbone, "repvit_m1" (EdgeSAM) or the larger "repvit_m2_3"."""
    held_back: int = 32
    """Photos, at most a tenth of all, that are evaluated on and never learned from."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, by name."""
        super().__post_init__()
        _check_size(self.size)
        _check_positive(self, "steps", "batch", "held_back")


@dataclass(frozen=True, kw_only=True)
class GranularityStageConfig(EngineConfig):
    """Boxes of objects, proposed from a frozen encoder's features."""

    steps: int
    """Optimiser steps."""
    set_weights: dict[str, float]
    """Data set folder -> how often it is drawn; every object in its photos should be labelled."""
    size: int = 1024
    """S, at which the frozen model is served; a multiple of 64."""
    batch: int = 8
    """Crops a step, of each process."""
    min_area: float = 0.001
    """Smallest object that is proposed, as a share of the crop's area."""
    max_side: int = 640
    """Long side in pixels at which photos are kept in memory."""
    held_back: int = 32
    """Held-back images that an evaluation asks about."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, by name."""
        super().__post_init__()
        _check_size(self.size)
        _check_positive(self, "steps", "batch", "held_back")
        if not self.set_weights:
            raise RunError("set_weights: must name at least one data set")


def _check_size(size: int) -> None:
    if size < 64 or size % 64:
        raise RunError(f"size: expected a multiple of 64, got {size}")


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise RunError(f"{name}: expected at least 1, got {getattr(config, name)}")
