from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from edgesam_core.nn.checkpoint import official_state_dict
from edgesam_core.nn.sam_model import SamModel
from edgesam_core.nn.sam_vit import VitSize, build_sam_vit

# 16 x 16 patches: more than a window of 14, so that windows are padded to 28 x 28.
SMALL = VitSize(width=32, heads=2, blocks=2, global_blocks=(1,), input_size=256)
WINDOW = 14
TOLERANCE = 1e-4  # fp32 against fp64 gave 1e-5, on an embedding of size 1

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> SamModel:
    """A ViT in which every part has a say, on activations so small that the norms' eps shows."""
    torch.manual_seed(0)
    model = build_sam_vit("sam_vit_b", SMALL).eval()
    with torch.no_grad():
        for name, parameter in model.image_encoder.named_parameters():
            scale = 0.005 if "embed" in name else 0.3
            parameter.add_(scale * torch.randn_like(parameter))
        for name in ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
            model.image_encoder.get_parameter(name).mul_(0.2)
    return model


def expected_and_actual(model: SamModel) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    weights = {
        key.removeprefix("image_encoder."): tensor.double()
        for key, tensor in official_state_dict(model).items()
    }
    with torch.no_grad():
        return plain_vit(weights, image.double()), model.encode(image).double()


def test_it_computes_what_sams_paper_says(model: SamModel) -> None:
    expected, actual = expected_and_actual(model)
    assert actual.shape == (1, 256, 16, 16)
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_that_comparison_would_notice_timms_own_eps(model: SamModel) -> None:
    other = copy.deepcopy(model)
    for module in other.image_encoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    expected, actual = expected_and_actual(other)
    assert (actual - expected).abs().max() > 10 * TOLERANCE


def plain_vit(weights: Weights, image: torch.Tensor) -> torch.Tensor:
    """SAM's image encoder, written from its description, for one image [1, 3, S, S]."""
    x = F.conv2d(image, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], 16)
    x = x[0].permute(1, 2, 0) + weights["pos_embed"][0]  # [s, s, D]
    for block in range(SMALL.blocks):
        own = {
            key.removeprefix(f"blocks.{block}."): tensor
            for key, tensor in weights.items()
            if key.startswith(f"blocks.{block}.")
        }
        attend = plain_attention if block in SMALL.global_blocks else in_windows
        x = x + attend(own, norm(own, "norm1", x))
        hidden = F.gelu(linear(own, "mlp.lin1", norm(own, "norm2", x)))
        x = x + linear(own, "mlp.lin2", hidden)
    x = F.conv2d(x.permute(2, 0, 1)[None], weights["neck.0.weight"])
    x = norm(weights, "neck.1", x[0].permute(1, 2, 0)).permute(2, 0, 1)[None]
    x = F.conv2d(x, weights["neck.2.weight"], padding=1)
    return norm(weights, "neck.3", x[0].permute(1, 2, 0)).permute(2, 0, 1)[None]


def norm(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def in_windows(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Attention in windows one by one; what lies beyond the map is a token of zeros, not masked."""
    side = x.shape[0]
    padded = x.new_zeros(2 * WINDOW, 2 * WINDOW, x.shape[2])
    padded[:side, :side] = x
    answer = torch.zeros_like(padded)
    for top in (0, WINDOW):
        for left in (0, WINDOW):
            window = slice(top, top + WINDOW), slice(left, left + WINDOW)
            answer[window] = plain_attention(weights, padded[window])
    return answer[:side, :side]


def plain_attention(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """[s, s, D] -> [s, s, D], head by head, with relative positions of rows and of columns."""
    side, _, width = x.shape
    depth = width // SMALL.heads
    # Row i of the tables of [2 s - 1, depth] is the offset i - (s - 1) of a query from a key.
    offset = torch.arange(side)[:, None] - torch.arange(side)[None, :] + side - 1
    of_rows = weights["attn.rel_pos_h"][offset]  # [query row, key row, depth]
    of_columns = weights["attn.rel_pos_w"][offset]
    qkv = linear(weights, "attn.qkv", x)
    heads = []
    for head in range(SMALL.heads):
        q, k, v = (
            qkv[..., part * width + head * depth :][..., :depth]  # [s, s, depth]
            for part in range(3)
        )
        scores = torch.einsum("ijc,klc->ijkl", q, k) / depth**0.5
        scores = scores + torch.einsum("ijc,ikc->ijk", q, of_rows)[:, :, :, None]
        scores = scores + torch.einsum("ijc,jlc->ijl", q, of_columns)[:, :, None, :]
        attention = scores.flatten(2).softmax(-1).unflatten(2, (side, side))
        heads.append(torch.einsum("ijkl,klc->ijc", attention, v))
    return linear(weights, "attn.proj", torch.cat(heads, -1))
