"""RepViT-M1, the student's backbone, from timm; two of its activations go on to the FPN.

timm's ``repvit_m1`` has exactly the 676 backbone tensors of an EdgeSAM checkpoint, but draws its
stage borders one block earlier: the last block of a stage is timm's ``downsample.pre_block`` of the
next. ``features_only`` therefore returns the wrong activations; ``stage_outputs`` below taps the
right ones.

Papers: RepViT (arXiv 2307.09283), EdgeSAM (arXiv 2312.06660) section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

STAGE_CHANNELS = (48, 96, 192, 384)
"""Channels of stage0 to stage3, at strides 4, 8, 16 and 32."""


def _declare_missing_torchvision_operators() -> None:
    """Let timm import where torchvision was built for CUDA and torch for the CPU.

    timm imports torchvision, which then looks for two operators that only its own binary defines.
    They may be declared only after torchvision itself has failed: beside a healthy torchvision the
    second registration ends the process.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )


def build_repvit_m1() -> nn.Module:
    """RepViT-M1 from timm, without its classifier, randomly initialised (4,713,712 parameters)."""
    _declare_missing_torchvision_operators()
    import timm

    backbone: nn.Module = timm.create_model("repvit_m1", num_classes=0)
    return backbone


def stage_outputs(backbone: Any, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """The activations at EdgeSAM's stage ends, in order.

    Args:
        backbone: What ``build_repvit_m1`` returned; untyped, as timm is.
        x: [B, 3, S, S] float, normalised.

    Yields:
        stage0 [B, 48, S/4, S/4], stage1 [B, 96, S/8, S/8], stage2 [B, 192, S/16, S/16] and
        stage3 [B, 384, S/32, S/32], each after the last block of its stage.

    Source:
        EdgeSAM's ``features.3``, ``.7``, ``.23`` and ``.26``; in timm the last block of stages 0 to
        2 is ``stages[i + 1].downsample.pre_block``.
    """
    x = backbone.stages[0](backbone.stem(x))
    for stage in backbone.stages[1:]:
        down = stage.downsample
        x = down.pre_block(x)
        yield x
        x = down.channel_downsample(down.spatial_downsample(x))
        x = stage.blocks(x + down.ffn(x))
    yield x
