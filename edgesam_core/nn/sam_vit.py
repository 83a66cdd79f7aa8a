"""SAM's own image encoders: ViT-B, ViT-L and ViT-H from timm, under the published key names.

A plain ViT of 16-pixel patches whose attention sees windows of 14 x 14 patches, and all patches in
four of its blocks. Positions enter twice: learned for every patch of a 1024-pixel image, and
relative ones in every attention, taken apart into rows and columns. So its input size is fixed.

timm's network is SAM's but for the eps of its layer norms (PyTorch's 1e-5; SAM has 1e-6) and two
names per block.

Papers: Segment Anything (arXiv 2304.02643) appendix A, ViTDet (arXiv 2203.16527), MViTv2
(arXiv 2112.01526) section 4.1 for the relative positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from edgesam_core.nn.neck import build_neck
from edgesam_core.nn.sam_model import SamModel
from edgesam_core.nn.timm_import import import_timm


@dataclass(frozen=True)
class VitSize:
    """What tells one ViT of SAM from another."""

    width: int
    heads: int
    blocks: int
    global_blocks: tuple[int, ...]
    # those whose attention sees all patches
    input_size: int = 1024
    # S in pixels


VIT_B = VitSize(width=768, heads=12, blocks=12, global_blocks=(2, 5, 8, 11))
VIT_L = VitSize(width=1024, heads=16, blocks=24, global_blocks=(5, 11, 17, 23))
VIT_H = VitSize(width=1280, heads=16, blocks=32, global_blocks=(7, 15, 23, 31))
"""89.7, 308.3 and 637.0 million parameters in the encoder."""


def build_sam_vit(architecture: str, size: VitSize) -> SamModel:
    """SAM with random weights.

    Args:
        architecture: The network's name: "sam_vit_b".
        size: One of the three above; smaller ones serve tests.
    """
    names = {
        f"image_encoder.blocks.{block}.mlp.lin{i}.": f"image_encoder.blocks.{block}.mlp.fc{i}."
        for block in range(size.blocks)
        for i in (1, 2)
    }
    return SamModel(
        architecture, build_vit(size), published_prefixes=names, input_size=size.input_size
    )


def build_vit(size: VitSize) -> nn.Module:
    """The image encoder: [B, 3, S, S] normalised and padded -> [B, 256, S/16, S/16]."""
    import_timm()
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    vit: nn.Module = VisionTransformerSAM(
        img_size=size.input_size,
        embed_dim=size.width,
        depth=size.blocks,
        num_heads=size.heads,
        global_attn_indexes=size.global_blocks,
        use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        neck_chans=None,
        num_classes=0,
        global_pool="",
    )
    vit.neck = build_neck(size.width)  # of our layer norms, which the export knows
    return vit
