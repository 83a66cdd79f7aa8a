"""Low-rank additions to the mask decoder: few numbers that learn beside weights that stay.

    add_adapters(student, rank=16)      # before training: only these learn in the decoder
    merge_adapters(student)             # before export: the published 821 tensors again

Paper: LoRA (arXiv 2106.09685). In EdgeSAM it is an option, off by default: rank 16 on the query
and value projections of every attention of the decoder.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from edgesam_core.nn.sam_model import SamModel
from edgesam_core.nn.transformer import Attention


class AdaptedLinear(nn.Linear):
    """A frozen linear layer plus ``up @ down``, which begins as zero.

    Its weight and bias keep their names, so that the published tensors are where they were.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        """Take over a layer's weights.

        Args:
            linear: Is left as it was, but shares its tensors.
            rank: Inner width of the addition.
        """
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # nn.Linear's own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up)

    def merged(self) -> nn.Linear:
        """A plain layer that answers the same."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        linear.weight = nn.Parameter(self.weight.detach() + self.up.detach() @ self.down.detach())
        linear.bias = self.bias
        return linear


def add_adapters(model: SamModel, *, rank: int) -> None:
    """Freeze the mask decoder and add what learns in its place.

    The addition is not scaled (LoRA's alpha equals the rank). Tokens, normalisation and IoU head
    stay as they are, too.

    Args:
        model: Changed in place; 14 layers, 94,208 new parameters at rank 16.
        rank: Of each addition.
    """
    model.mask_decoder.requires_grad_(False)
    for attention in _attentions(model):
        attention.q_proj = AdaptedLinear(attention.q_proj, rank)
        attention.v_proj = AdaptedLinear(attention.v_proj, rank)


def merge_adapters(model: SamModel) -> None:
    """Fold the additions into the weights, in place; a model without any is left as it is."""
    for attention in _attentions(model):
        for name in ("q_proj", "v_proj"):
            layer = getattr(attention, name)
            if isinstance(layer, AdaptedLinear):
                setattr(attention, name, layer.merged())


def _attentions(model: SamModel) -> list[Attention]:
    return [m for m in model.mask_decoder.modules() if isinstance(m, Attention)]
