"""The granularity prior: boxes of whole objects, proposed from the encoder's own features.

A click says where, not how much: the eye or the cat. This small detector (BiFPN and head of
EfficientDet, 258,726 parameters, one class) rides on the frozen encoder and proposes boxes of
objects as a data set's annotators drew them; the box that fits a click then joins it as a prompt
(edgesam_core/granularity.py). Optional: a checkpoint holds its 432 tensors (``fpn.*``,
``rpn_head.*``) beside the 821 of EdgeSAM, or does not.

Names of modules are those of the official checkpoints, hence MMDetection's. At every level
"same" padding means TensorFlow's: what a stride needs more goes to the far side.

Papers: EdgeSAM (arXiv 2312.06660), section 3.3; EfficientDet (arXiv 1911.09070), section 3 (BiFPN)
    and 4 (head); the norm per level is that of its published code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from edgesam_core.errors import BundleError
from edgesam_core.granularity import ANCHORS_PER_CELL
from edgesam_core.nn.repvit import STAGE_CHANNELS

WIDTH = 64
"""Channels at every level."""

LEVELS = (3, 4, 5, 6, 7)
"""Level l is a map of S / 2^l cells a side, rounded up."""

PREFIXES = ("fpn.", "rpn_head.")
"""Of the keys that an official state dict has for this network."""

_STAGES = 3
_TOWER = 3
_EPSILON = 1e-4  # keeps a fusion whose weights are all negative from dividing by zero
_FIRST_OBJECTNESS = 0.01  # before training: nearly every anchor shows no object


def _norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(WIDTH, eps=1e-3, momentum=0.01)


def halve(x: torch.Tensor) -> torch.Tensor:
    """3x3 maximum at every second cell, zeros around: [B, C, H, W] -> [B, C, H/2, W/2], rounded up.

    Zeros, not minus infinity as PyTorch's own padding: at the border a negative map gives 0.
    """
    height, width = (int(side) for side in x.shape[-2:])
    return F.max_pool2d(F.pad(x, [width % 2, 1, height % 2, 1]), kernel_size=3, stride=2)


def enlarge(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Twice the size by repeating cells, cut to the size of the finer map (an odd one is cut)."""
    height, width = (int(side) for side in like.shape[-2:])
    return F.interpolate(x, scale_factor=2.0, mode="nearest")[..., :height, :width]


class SeparableConv(nn.Module):
    """Depthwise 3x3, then 1x1; with a norm behind it in the pyramid, without in the head."""

    def __init__(self, channels: int = WIDTH, *, has_norm: bool = True) -> None:
        """Build for ``WIDTH`` input channels.

        Args:
            channels: Of the output.
            has_norm: Whether a batch norm follows (which has ``WIDTH`` channels).
        """
        super().__init__()
        self.depthwise_conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        self.pointwise_conv = nn.Conv2d(WIDTH, channels, kernel_size=1)
        self.bn = _norm() if has_norm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 64, H, W] -> [B, channels, H, W]."""
        x = self.pointwise_conv(self.depthwise_conv(x))
        return x if self.bn is None else self.bn(x)


class Projection(nn.Module):
    """One of the encoder's maps, brought to the pyramid's width."""

    def __init__(self, in_channels: int) -> None:
        """1x1 convolution and norm."""
        super().__init__()
        self.down_conv = nn.Conv2d(in_channels, WIDTH, kernel_size=1)
        self.bn = _norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, 64, H, W]."""
        projected: torch.Tensor = self.bn(self.down_conv(x))
        return projected


class BiFpnStage(nn.Module):
    """One pass through the pyramid, from coarse to fine and back, as a learned weighted sum."""

    def __init__(self) -> None:
        """Start with equal weights."""
        super().__init__()
        for level in (6, 5, 4, 3):
            self.register_parameter(f"p{level}_w1", nn.Parameter(torch.ones(2)))
            self.add_module(f"conv{level}_up", SeparableConv())
        for level in (4, 5, 6, 7):
            self.register_parameter(f"p{level}_w2", nn.Parameter(torch.ones(3 if level < 7 else 2)))
            self.add_module(f"conv{level}_down", SeparableConv())

    def forward(
        self, levels: Sequence[torch.Tensor], again: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Five maps [B, 64, S/2^l, S/2^l], l from 3 to 7, in and out.

        Args:
            levels: The maps.
            again: The maps as the way back sees them; None means the same.
        """
        given = dict(zip(LEVELS, levels, strict=True))
        given_again = given if again is None else dict(zip(LEVELS, again, strict=True))
        coarse = given[7]
        seen = {}
        for level in (6, 5, 4, 3):
            parts = [given[level], enlarge(coarse, like=given[level])]
            coarse = seen[level] = self._fused(f"p{level}_w1", f"conv{level}_up", parts)
        outputs = [seen[3]]
        for level in (4, 5, 6, 7):
            parts = [given_again[level], *([seen[level]] if level < 7 else []), halve(outputs[-1])]
            outputs.append(self._fused(f"p{level}_w2", f"conv{level}_down", parts))
        return outputs

    def _fused(self, weights: str, conv: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The weighted mean of maps of one size, swish, and a convolution.

        Source:
            EfficientDet section 3.3, "fast normalized fusion".
        """
        positive = F.relu(self.get_parameter(weights))
        shares = positive / (positive.sum() + _EPSILON)
        mean = torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum(0)
        fused: torch.Tensor = self.get_submodule(conv)(F.silu(mean))
        return fused


class FirstBiFpnStage(BiFpnStage):
    """The first pass, which takes the encoder's maps and makes the two coarsest from the last.

    The encoder's two coarser maps are projected a second time for the way back.
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        """Build for maps of so many channels, fine to coarse."""
        super().__init__()
        fine, middle, coarse = in_channels
        self.p3_down_channel = Projection(fine)
        self.p4_down_channel = Projection(middle)
        self.p5_down_channel = Projection(coarse)
        self.p5_to_p6 = nn.Sequential(Projection(coarse))
        self.p4_level_connection = Projection(middle)
        self.p5_level_connection = Projection(coarse)

    def forward(
        self, levels: Sequence[torch.Tensor], again: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """The encoder's stage1 to stage3 -> five maps [B, 64, S/2^l, S/2^l]."""
        stage1, stage2, stage3 = levels
        p3 = self.p3_down_channel(stage1)
        p6 = halve(self.p5_to_p6(stage3))
        p7 = halve(p6)
        first = [p3, self.p4_down_channel(stage2), self.p5_down_channel(stage3), p6, p7]
        again = [p3, self.p4_level_connection(stage2), self.p5_level_connection(stage3), p6, p7]
        return super().forward(first, again)


class BiFpn(nn.Module):
    """The pyramid: three passes."""

    def __init__(self, in_channels: Sequence[int]) -> None:
        """Build for maps of so many channels, fine to coarse."""
        super().__init__()
        later = [BiFpnStage() for _ in range(_STAGES - 1)]
        self.bifpn = nn.Sequential(FirstBiFpnStage(in_channels), *later)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """stage1 to stage3 -> five maps [B, 64, S/2^l, S/2^l], l from 3 to 7."""
        levels: list[torch.Tensor] = self.bifpn(features)
        return levels


class ProposalHead(nn.Module):
    """Objectness and box deltas of every anchor; convolutions shared by all levels, norms not."""

    def __init__(self) -> None:
        """Start with the belief that hardly any anchor shows an object."""
        super().__init__()
        for tower in ("reg", "cls"):
            convs = [SeparableConv(has_norm=False) for _ in range(_TOWER)]
            norms = [nn.ModuleList([_norm() for _ in LEVELS]) for _ in range(_TOWER)]
            self.add_module(f"{tower}_conv_list", nn.ModuleList(convs))
            self.add_module(f"{tower}_bn_list", nn.ModuleList(norms))
        self.cls_header = SeparableConv(ANCHORS_PER_CELL, has_norm=False)
        self.reg_header = SeparableConv(4 * ANCHORS_PER_CELL, has_norm=False)
        logit = math.log(_FIRST_OBJECTNESS / (1 - _FIRST_OBJECTNESS))
        for header, start in ((self.cls_header, logit), (self.reg_header, 0.0)):
            assert header.pointwise_conv.bias is not None
            nn.init.constant_(header.pointwise_conv.bias, start)

    def forward(
        self, levels: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Five maps -> per level logits [B, 9, h, w] and deltas [B, 36, h, w], anchor by anchor."""
        logits = [self.cls_header(self._tower("cls", i, x)) for i, x in enumerate(levels)]
        deltas = [self.reg_header(self._tower("reg", i, x)) for i, x in enumerate(levels)]
        return logits, deltas

    def _tower(self, tower: str, level: int, x: torch.Tensor) -> torch.Tensor:
        convs, norms = self.get_submodule(f"{tower}_conv_list"), f"{tower}_bn_list"
        for i, conv in enumerate(convs.children()):
            x = F.silu(self.get_submodule(f"{norms}.{i}.{level}")(conv(x)))
        return x


class GranularityPrior(nn.Module):
    """The detector: the encoder's features in, objectness and box deltas of every anchor out."""

    def __init__(self, in_channels: Sequence[int] = STAGE_CHANNELS[1:]) -> None:
        """Build with random weights.

        Args:
            in_channels: Of the encoder's stage1, stage2 and stage3.
        """
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.fpn = BiFpn(in_channels)
        self.rpn_head = ProposalHead()

    def forward(
        self, stage1: torch.Tensor, stage2: torch.Tensor, stage3: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the encoder saw -> what it thinks of every anchor.

        Args:
            stage1: [B, 96, S/8, S/8], after the last block of its stage, as the others.
            stage2: [B, 192, S/16, S/16].
            stage3: [B, 384, S/32, S/32].

        Returns:
            objectness_logits [B, A] and deltas [B, A, 4], in the order of
            ``edgesam_core.granularity.anchors``.
        """
        logits, deltas = self.rpn_head(self.fpn([stage1, stage2, stage3]))
        flat_logits = [level.permute(0, 2, 3, 1).flatten(1) for level in logits]
        flat_deltas = [
            level.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)) for level in deltas
        ]
        return torch.cat(flat_logits, 1), torch.cat(flat_deltas, 1)


def is_granularity_key(key: str) -> bool:
    """Whether a tensor of an official state dict belongs to the granularity prior."""
    return key.startswith(PREFIXES)


def build_granularity_prior(state_dict: Mapping[str, torch.Tensor]) -> GranularityPrior | None:
    """The granularity prior that a checkpoint holds, in evaluation mode.

    Args:
        state_dict: Official tensors, fp32 or fp16; those of EdgeSAM itself are passed over.

    Returns:
        None where it holds none.

    Raises:
        BundleError: A tensor is missing, unknown or of another shape; ``detail`` names them.
    """
    tensors = {key: value for key, value in state_dict.items() if is_granularity_key(key)}
    if not tensors:
        return None
    try:
        projections = [f"fpn.bifpn.0.p{level}_down_channel.down_conv.weight" for level in (3, 4, 5)]
        prior = GranularityPrior([tensors[key].shape[1] for key in projections]).eval()
        prior.load_state_dict(tensors, strict=True)
    except (KeyError, IndexError, RuntimeError) as exc:
        raise BundleError(
            f"The checkpoint's {len(tensors)} tensors of a granularity prior ({PREFIXES[0]}*, "
            f"{PREFIXES[1]}*) do not fit the network.",
            detail=str(exc),
        ) from exc
    return prior
