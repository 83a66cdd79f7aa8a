"""EdgeSAM's image encoder: RepViT, a two-tap FPN and SAM's neck.

Place in a click's path: normalised image -> image embedding. The same encoder takes any input size
S that is a multiple of 32; the published weights were trained at 1024.

Paper: EdgeSAM (arXiv 2312.06660), section 3.1 and figure 3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from edgesam_core.nn.neck import EMBEDDING_CHANNELS, build_neck
from edgesam_core.nn.repvit import CHANNELS, Trunk, build_repvit, stage_outputs

UpsampleMode = Literal["bicubic", "bilinear"]


class FuseStage3(nn.Module):
    """The coarse FPN tap: 1x1 convolution, then twice the size.

    The convolution sits in ``op_list`` because the official checkpoints name it so.
    """

    def __init__(self, mode: UpsampleMode, channels: int) -> None:
        """Choose the up-sampling; the weights fit either.

        Args:
            mode: How to enlarge.
            channels: C, channels of stage3.
        """
        super().__init__()
        self.op_list = nn.ModuleList(
            [nn.Conv2d(channels, EMBEDDING_CHANNELS, kernel_size=1, bias=False)]
        )
        self.mode = mode

    def forward(self, stage3: torch.Tensor) -> torch.Tensor:
        """[B, C, S/32, S/32] -> [B, 256, S/16, S/16]."""
        x = self.op_list[0](stage3)
        return F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=False)


class ImageEncoder(nn.Module):
    """Normalised image to image embedding.

    Source:
        EdgeSAM section 3.1. The paper's text and training use bicubic up-sampling in the FPN, every
        official export uses bilinear; we keep bicubic, with which the weights were trained, and
        offer bilinear for files that were exported officially.
    """

    def __init__(self, upsample: UpsampleMode = "bicubic", trunk: Trunk = "repvit_m1") -> None:
        """Build with random weights.

        Args:
            upsample: How the coarse FPN tap is brought to the size of the fine one.
            trunk: timm's name of the backbone.
        """
        super().__init__()
        stage2, stage3 = CHANNELS[trunk][2:]
        self.backbone = build_repvit(trunk)
        self.fuse_stage2 = nn.Conv2d(stage2, EMBEDDING_CHANNELS, 1, bias=False)
        self.fuse_stage3 = FuseStage3(upsample, stage3)
        self.neck = build_neck(EMBEDDING_CHANNELS)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] normalised and padded -> image embedding [B, 256, S/16, S/16]."""
        _, _, stage2, stage3 = stage_outputs(self.backbone, image)
        return self.embed(stage2, stage3)

    def embed(self, stage2: torch.Tensor, stage3: torch.Tensor) -> torch.Tensor:
        """What follows the backbone, from its last two stages to the image embedding."""
        fused = self.fuse_stage2(stage2) + self.fuse_stage3(stage3)
        embedding: torch.Tensor = self.neck(fused)
        return embedding
