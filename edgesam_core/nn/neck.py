"""The last four layers of every image encoder of SAM's family."""

from __future__ import annotations

from torch import nn

from edgesam_core.nn.layer_norm import LayerNorm2d

EMBEDDING_CHANNELS = 256


def build_neck(channels: int) -> nn.Sequential:
    """[B, channels, s, s] -> image embedding [B, 256, s, s]; random weights.

    Source:
        Segment Anything (arXiv 2304.02643), appendix A, "Image encoder", after ViTDet.
    """
    return nn.Sequential(
        nn.Conv2d(channels, EMBEDDING_CHANNELS, kernel_size=1, bias=False),
        LayerNorm2d(EMBEDDING_CHANNELS),
        nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, 3, padding=1, bias=False),
        LayerNorm2d(EMBEDDING_CHANNELS),
    )
