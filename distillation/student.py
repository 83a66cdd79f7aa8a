"""The student of the prompt stage before its first step: its weights, and which of them learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from distillation.command import naming
from distillation.configs import PromptStageConfig
from distillation.lora import add_adapters
from edgesam_core.errors import RunError
from edgesam_core.nn.checkpoint import load_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam


def build_student(config: PromptStageConfig, init: Path | None, teacher: Any) -> EdgeSam:
    """An EdgeSAM as the recipe wants it, with what does not learn frozen.

    Args:
        config: The recipe.
        init: Weights to start from; None: random ones.
        teacher: The recipe's; ``starts_from_teacher`` takes prompt encoder and mask decoder of it.

    Raises:
        RunError: The weights are another network's, or what does not learn has none.
    """
    torch.manual_seed(config.seed)
    student = EdgeSam(draws_prompts=config.draws_prompts, trunk=config.trunk)
    cast("Any", student).to(memory_format=torch.channels_last)
    if init is not None:
        with naming(init):
            load_state_dict(student, read_checkpoint(init))
    if config.starts_from_teacher:
        student.prompt_encoder.load_state_dict(teacher.network.prompt_encoder.state_dict())
        student.mask_decoder.load_state_dict(teacher.network.mask_decoder.state_dict())
    elif init is None and (config.prompt_encoder, config.decoder) != ("trained", "trained"):
        raise RunError(
            "prompt_encoder and decoder: what is not trained needs weights. Name some with --init, "
            "or let it begin as a teacher's (starts_from_teacher)."
        )
    student.prompt_encoder.requires_grad_(config.prompt_encoder == "trained")
    student.mask_decoder.requires_grad_(config.decoder == "trained")
    if config.decoder == "lora":
        add_adapters(student, rank=config.lora_rank)
    return student
