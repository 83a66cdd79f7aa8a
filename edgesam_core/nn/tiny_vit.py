"""MobileSAM's image encoder: TinyViT-5M from timm, under the published key names.

Four stages: convolutions at stride 4, then attention in windows at strides 8, 16 and 16, since
MobileSAM's last down-sampling keeps the size; SAM's neck follows. The published file also holds
TinyViT's classifier, 321,640 parameters that nothing uses. It is kept, so that files load strictly
and come back whole.

timm draws stage borders elsewhere (a stage begins with its down-sampling; in the file it ends with
the next one's) and has other names for convolutions and classifier.

Papers: MobileSAM (arXiv 2306.14289), TinyViT (arXiv 2207.10666).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgesam_core.nn.neck import build_neck
from edgesam_core.nn.sam_model import SamModel
from edgesam_core.nn.timm_import import import_timm

DEPTHS = (2, 2, 6, 2)
"""Blocks of the four stages; those of the first are convolutions."""

LAST_CHANNELS, CLASSES = 320, 1000


class TinyVit(nn.Module):
    """Normalised image to image embedding (6,065,532 parameters, classifier included)."""

    backbone: Any
    # timm's, untyped

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.backbone = import_timm().create_model(
            "tiny_vit_5m_224", num_classes=CLASSES, drop_path_rate=0.0
        )
        self.backbone.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = build_neck(LAST_CHANNELS)
        self.register_load_state_dict_post_hook(_forget_earlier_biases)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] normalised and padded -> image embedding [B, 256, S/16, S/16]."""
        embedding: torch.Tensor = self.neck(self.backbone.forward_features(image))
        return embedding


def _forget_earlier_biases(module: nn.Module, _: object) -> None:
    """Make loaded weights count: in evaluation timm's attentions keep their last run's biases."""
    module.train(module.training)  # drops them, whichever mode it is


def build_mobile_sam(input_size: int = 1024) -> SamModel:
    """MobileSAM with random weights.

    Args:
        input_size: S in pixels. Published weights were trained at 1024 and the published code takes
            nothing else; the network itself takes any multiple of 64.
    """
    return SamModel(
        "mobile_sam", TinyVit(), published_prefixes=published_prefixes(), input_size=input_size
    )


def published_prefixes() -> dict[str, str]:
    """Prefix in a MobileSAM checkpoint -> ours; a longer prefix goes before a shorter one."""
    table = {"layers.": "stages.", "norm_head.": "head.norm.", "head.": "head.fc."}

    def conv_norm(theirs: str, ours: str) -> dict[str, str]:
        return {f"{theirs}.c.": f"{ours}.conv.", f"{theirs}.bn.": f"{ours}.bn."}

    for i, j in ((0, 1), (2, 2)):
        table |= conv_norm(f"patch_embed.seq.{i}", f"patch_embed.conv{j}")
    for stage, depth in enumerate(DEPTHS):
        names = ("conv1", "conv2", "conv3") if stage == 0 else ("local_conv",)
        for block in range(depth):
            for name in names:
                place = f"{stage}.blocks.{block}.{name}"
                table |= conv_norm(f"layers.{place}", f"stages.{place}")
        if stage > 0:
            for name in ("conv1", "conv2", "conv3"):
                theirs, ours = f"{stage - 1}.downsample.{name}", f"{stage}.downsample.{name}"
                table |= conv_norm(f"layers.{theirs}", f"stages.{ours}")
    encoder = "image_encoder."
    return {f"{encoder}{a}": f"{encoder}backbone.{b}" for a, b in table.items()}
