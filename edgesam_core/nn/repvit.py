"""RepViT, EdgeSAM's backbone, from timm; two of its activations go on to the FPN.

timm's ``repvit_m1`` has exactly the 676 backbone tensors of an EdgeSAM checkpoint, but draws its
stage borders one block earlier: the last block of a stage is timm's ``downsample.pre_block`` of the
next. ``features_only`` therefore returns the wrong activations; ``stage_outputs`` below taps the
right ones.

Papers: RepViT (arXiv 2307.09283), EdgeSAM (arXiv 2312.06660) section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from edgesam_core.nn.timm_import import import_timm

Trunk = Literal["repvit_m1", "repvit_m2_3"]

CHANNELS: dict[Trunk, tuple[int, int, int, int]] = {
    "repvit_m1": (48, 96, 192, 384),
    "repvit_m2_3": (80, 160, 320, 640),
}
"""Channels of stage0 to stage3, at strides 4, 8, 16 and 32."""

STAGE_CHANNELS = CHANNELS["repvit_m1"]
"""Those of the published EdgeSAM."""

_BLOCK = (
    ("token_mixer.0.conv.", "token_mixer.conv."),
    ("token_mixer.0.conv1.", "token_mixer.conv1."),
    ("token_mixer.1.", "se."),
    ("channel_mixer.m.0.", "channel_mixer.conv1."),
    ("channel_mixer.m.2.", "channel_mixer.conv2."),
)
_DOWNSAMPLE = (
    ("token_mixer.0.", "spatial_downsample."),
    ("token_mixer.2.", "channel_downsample."),
    ("channel_mixer.m.0.", "ffn.conv1."),
    ("channel_mixer.m.2.", "ffn.conv2."),
)


def build_repvit(trunk: Trunk) -> nn.Module:
    """A RepViT from timm, without its classifier, randomly initialised.

    Args:
        trunk: timm's name: M1 has 4,713,712 parameters, M2.3 has 22,404,232.
    """
    backbone: nn.Module = import_timm().create_model(trunk, num_classes=0)
    return backbone


def stage_outputs(backbone: Any, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """The activations at EdgeSAM's stage ends, in order.

    Args:
        backbone: What ``build_repvit`` returned; untyped, as timm is.
        x: [B, 3, S, S] float, normalised.

    Yields:
        stage0 [B, 48, S/4, S/4], stage1 [B, 96, S/8, S/8], stage2 [B, 192, S/16, S/16] and
        stage3 [B, 384, S/32, S/32] (of M1), each after the last block of its stage.

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


def published_prefixes() -> dict[str, str]:
    """Prefix in an EdgeSAM checkpoint -> ours, for every named part of RepViT-M1.

    Source:
        The published layout. Stages end with blocks 3, 7, 23 and 26; blocks 4, 8 and 24 halve the
        size; timm counts the last block of stages 0 to 2 to the next stage's downsampling.
    """
    table = {"0.0.": "stem.conv1.", "0.2.": "stem.conv2."}
    ends = (0, 3, 7, 23, 26)
    for stage, (start, end) in enumerate(pairwise(ends)):
        blocks = list(range(start + 1, end + 1))
        if stage > 0:
            down = blocks.pop(0)
            table |= {f"{down}.{a}": f"stages.{stage}.downsample.{b}" for a, b in _DOWNSAMPLE}
        if stage < 3:
            last = blocks.pop()
            pre_block = f"stages.{stage + 1}.downsample.pre_block"
            table |= {f"{last}.{a}": f"{pre_block}.{b}" for a, b in _BLOCK}
        for i, block in enumerate(blocks):
            table |= {f"{block}.{a}": f"stages.{stage}.blocks.{i}.{b}" for a, b in _BLOCK}
    encoder = "image_encoder."
    return {f"{encoder}features.{a}": f"{encoder}backbone.{b}" for a, b in table.items()}
