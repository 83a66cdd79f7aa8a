"""The image encoder: RepViT-M1, a two-tap FPN and SAM's neck.

Place in a click's path: normalised image -> image embedding. The same encoder takes any input size
S that is a multiple of 32; the published weights were trained at 1024.

Paper: EdgeSAM (arXiv 2312.06660), section 3.1 and figure 3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from edgesam_core.nn.layer_norm import LayerNorm2d
from edgesam_core.nn.repvit import STAGE_CHANNELS, build_repvit_m1, stage_outputs

EMBEDDING_CHANNELS = 256
UpsampleMode = Literal["bicubic", "bilinear"]


class FuseStage3(nn.Module):
    """The coarse FPN tap: 1x1 convolution, then twice the size.

    The convolution sits in ``op_list`` because the official checkpoints name it so.
    """

    def __init__(self, mode: UpsampleMode) -> None:
        """Choose the up-sampling; the weights fit either."""
        super().__init__()
        self.op_list = nn.ModuleList(
            [nn.Conv2d(STAGE_CHANNELS[3], EMBEDDING_CHANNELS, kernel_size=1, bias=False)]
        )
        self.mode = mode

    def forward(self, stage3: torch.Tensor) -> torch.Tensor:
        """[B, 384, S/32, S/32] -> [B, 256, S/16, S/16]."""
        x = self.op_list[0](stage3)
        return F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=False)


class ImageEncoder(nn.Module):
    """Normalised image to image embedding.

    Source:
        EdgeSAM section 3.1. The paper's text and training use bicubic up-sampling in the FPN, every
        official export uses bilinear; we keep bicubic, with which the weights were trained, and
        offer bilinear for files that were exported officially.
    """

    def __init__(self, upsample: UpsampleMode = "bicubic") -> None:
        """Build with random weights.

        Args:
            upsample: How the coarse FPN tap is brought to the size of the fine one.
        """
        super().__init__()
        self.backbone = build_repvit_m1()
        self.fuse_stage2 = nn.Conv2d(STAGE_CHANNELS[2], EMBEDDING_CHANNELS, 1, bias=False)
        self.fuse_stage3 = FuseStage3(upsample)
        self.neck = nn.Sequential(
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, 3, padding=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] normalised and padded -> image embedding [B, 256, S/16, S/16]."""
        _, _, stage2, stage3 = stage_outputs(self.backbone, image)
        fused = self.fuse_stage2(stage2) + self.fuse_stage3(stage3)
        embedding: torch.Tensor = self.neck(fused)
        return embedding
