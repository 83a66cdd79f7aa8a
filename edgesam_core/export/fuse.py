"""Fold RepViT's training-time branches into single convolutions.

While it trains, every convolution is followed by a batch norm and every token mixer is a sum of
three branches. At inference all of that is linear, so it folds into one convolution each without
changing the answer. The official export folds only the batch norms; the branches cost a fifth of the
encoder's time.

Papers: RepVGG (arXiv 2101.03697) section 3.3, RepViT (arXiv 2307.09283) section 3.2.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F


class ScaledConv(nn.Module):
    """A convolution with its batch norm folded in, weights and norm still apart.

    The product is taken by whoever runs the graph, once, when it opens the file. So the file holds
    the weights as they are in the checkpoint, which fp16 holds exactly, where the product would have
    to be stored in fp32 or rounded a second time (a relative 1.5e-3 on the embedding).
    """

    def __init__(self, conv_norm: nn.Module) -> None:
        """Take over the weights of a convolution and the scale and shift of its norm."""
        super().__init__()
        conv, norm = conv_norm.c, conv_norm.bn
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.scale = nn.Parameter(scale.detach().reshape(-1, 1, 1, 1))
        self.bias = nn.Parameter((norm.bias - norm.running_mean * scale).detach())
        self.stride, self.padding, self.groups = conv.stride, conv.padding, conv.groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What convolution and norm gave in evaluation mode."""
        weight = self.weight * self.scale
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


def fused(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose branches and batch norms are folded.

    Args:
        module: Left as it is.

    Returns:
        The copy, which must not be trained any more: its batch norms are gone.
    """
    return _fold(copy.deepcopy(module).eval())


def _fold(module: nn.Module) -> nn.Module:
    # Not at the top: timm can be imported only once a backbone was built (nn/repvit.py says why).
    from timm.models.repvit import ConvNorm, RepVggDw

    if isinstance(module, RepVggDw):
        depthwise: nn.Module = module.fuse()  # small: 9 weights a channel
        return depthwise
    if isinstance(module, ConvNorm):
        return ScaledConv(module)
    for name, child in module.named_children():
        setattr(module, name, _fold(child))
    return module
