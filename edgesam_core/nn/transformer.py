"""SAM's two-way transformer: prompt tokens look at the image, and the image looks back.

Paper: Segment Anything (arXiv 2304.02643), appendix A, "Lightweight mask decoder".
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, MLP_WIDTH, DEPTH = 256, 8, 2048, 2


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its tokens."""

    def __init__(self, inner_width: int) -> None:
        """Build with random weights; 256 for self-attention, 128 for cross-attention."""
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, inner_width)
        self.k_proj = nn.Linear(WIDTH, inner_width)
        self.v_proj = nn.Linear(WIDTH, inner_width)
        self.out_proj = nn.Linear(inner_width, WIDTH)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Queries [B, T, 256], keys and values [B, K, 256] -> [B, T, 256]."""
        q, k, v = (_split_heads(x) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        # Not scaled_dot_product_attention: on a CPU its backward pass takes ten times as long for
        # the few queries or keys that a prompt is.
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        out = weights @ v  # [B, 8, T, inner/8]
        return self.out_proj(out.transpose(1, 2).flatten(2))


def _split_heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two layers with a ReLU between them."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.lin1 = nn.Linear(WIDTH, MLP_WIDTH)
        self.lin2 = nn.Linear(MLP_WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, 256] -> the same shape."""
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to image, MLP, image to tokens."""

    def __init__(self, *, is_first: bool) -> None:
        """Build with random weights.

        Args:
            is_first: The first block's self-attention has no positional term and no residual: its
                output replaces the tokens.
        """
        super().__init__()
        self.self_attn = Attention(WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.cross_attn_token_to_image = Attention(WIDTH // 2)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = Mlp()
        self.norm3 = nn.LayerNorm(WIDTH)
        self.norm4 = nn.LayerNorm(WIDTH)
        self.cross_attn_image_to_token = Attention(WIDTH // 2)
        self.is_first = is_first

    def forward(
        self,
        tokens: torch.Tensor,
        image: torch.Tensor,
        token_position: torch.Tensor,
        image_position: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, T, 256] and image [B, K, 256], both returned changed."""
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_position
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)

        placed_image = image + image_position
        placed = tokens + token_position
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(placed, placed_image, image))
        tokens = self.norm3(tokens + self.mlp(tokens))

        placed = tokens + token_position
        image = self.norm4(image + self.cross_attn_image_to_token(placed_image, placed, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Two two-way blocks and a last look of the tokens at the image."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.layers = nn.ModuleList([TwoWayBlock(is_first=i == 0) for i in range(DEPTH)])
        self.final_attn_token_to_image = Attention(WIDTH // 2)
        self.norm_final_attn = nn.LayerNorm(WIDTH)

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, image_position: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Let prompt and image exchange what they know.

        Args:
            tokens: [B, T, 256] output and prompt tokens; a token's position is its initial value.
            image: [B, K, 256] image embedding plus dense prompt, one row a cell.
            image_position: [1, K, 256] dense positional encoding.

        Returns:
            Tokens [B, T, 256] and image [B, K, 256].
        """
        position = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, position, image_position)
        attended = self.final_attn_token_to_image(tokens + position, image + image_position, image)
        return self.norm_final_attn(tokens + attended), image
