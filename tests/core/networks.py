"""Networks with random weights in which every part has a say."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.fpn import UpsampleMode

# On a busy machine PyTorch's threads wait for each other ten times as long as they work.
torch.set_num_threads(1)


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def random_network(seed: int = 0, upsample: UpsampleMode = "bicubic") -> EdgeSam:
    """EdgeSAM in evaluation mode, every part of it at work."""
    torch.manual_seed(seed)
    return randomise(EdgeSam(upsample).eval())


def randomise(model: AnyModule) -> AnyModule:
    """Give parts that begin by doing (almost) nothing something to do; the model itself.

    Fresh batch norms are close to doing nothing, a fresh channel mixer does nothing at all (its
    last norm starts at zero), and so do fresh biases of an attention: a mistake in folding or
    naming them would not show. Here all are random.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for name, parameter in model.named_parameters():
        if name.endswith("attention_biases"):
            nn.init.normal_(parameter)
    return model
