"""LayerNorm over the channels of an image-shaped tensor, as in SAM."""

from __future__ import annotations

import torch
from torch import nn


class LayerNorm2d(nn.Module):
    """Normalise [B, C, H, W] over C at every position.

    Source:
        SAM's ``LayerNorm2d``: biased variance, eps 1e-6 (not PyTorch's default of 1e-5).
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        """Start as the identity of the normalised input."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> the same shape."""
        centred = x - x.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        normalised = centred * torch.rsqrt(variance + self.eps)
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]
