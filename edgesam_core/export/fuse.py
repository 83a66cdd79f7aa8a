"""Fold training-time branches and batch norms into single convolutions.

While it trains, every convolution of RepViT and TinyViT is followed by a batch norm and every token
mixer of RepViT is a sum of three branches. At inference all of that is linear, so it folds into one
convolution each without changing the answer. The official export folds only the batch norms and
keeps the branches.

Papers: RepVGG (arXiv 2101.03697) section 3.3, RepViT (arXiv 2307.09283) section 3.2.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class ScaledConv(nn.Module):
    """A convolution with its batch norm folded in, weights and norm still apart.

    The product is taken by whoever runs the graph, once, when it opens the file. So the file holds
    the rounded weights, which fp16 holds exactly; their product would have to be stored as fp32
    (11 MB more) or be rounded a second time (measured: 1.5e-3 on an embedding of size 1).
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """Take over the weights of a convolution and the scale and shift of its norm."""
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.scale = nn.Parameter(scale.detach().reshape(-1, 1, 1, 1))
        self.bias = nn.Parameter((norm.bias - norm.running_mean * scale).detach())
        self.geometry: dict[str, Any] = {
            "stride": conv.stride,
            "padding": conv.padding,
            "groups": conv.groups,
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What convolution and norm gave in evaluation mode."""
        return F.conv2d(x, self.weight * self.scale, self.bias, **self.geometry)


def fused(module: AnyModule) -> AnyModule:
    """A copy in evaluation mode whose branches and batch norms are folded.

    Args:
        module: Left as it is.

    Returns:
        The copy, which must not be trained any more: its batch norms are gone.
    """
    copied = copy.deepcopy(module).eval()
    _fold_children(copied)
    return copied


def _fold_children(module: nn.Module) -> None:
    # Not at the top: timm can be imported only once a backbone was built (nn/timm_import.py).
    from timm.models.repvit import ConvNorm, RepVggDw
    from timm.models.tiny_vit import ConvNorm as TinyVitConvNorm

    for name, child in module.named_children():
        if isinstance(child, RepVggDw):
            setattr(module, name, child.fuse())  # small: 9 weights a channel, stored as fp32
        elif isinstance(child, ConvNorm):
            setattr(module, name, ScaledConv(child.c, child.bn))
        elif isinstance(child, TinyVitConvNorm):
            setattr(module, name, ScaledConv(child.conv, child.bn))
        else:
            _fold_children(child)
