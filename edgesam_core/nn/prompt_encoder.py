"""Clicks, boxes and earlier masks as tokens: SAM's prompt encoder.

Place in a click's path: points in the frame of the S x S input -> sparse tokens and a dense map for
the mask decoder. A box is two points with labels 2 and 3; ``assemble_points`` builds that list by
SAM's rules, the padding point included.

Papers: Segment Anything (arXiv 2304.02643) appendix A; Fourier features (arXiv 2006.10739).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from edgesam_core.nn.layer_norm import LayerNorm2d

TOKEN_WIDTH = 256
IGNORE, PADDING, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = -2, -1, 0, 1, 2, 3
"""Point labels. IGNORE (EdgeSAM only) is an all-zero token, which attention still sees."""


class PositionalEncoding(nn.Module):
    """Random Fourier features of a position in the unit square."""

    positional_encoding_gaussian_matrix: torch.Tensor

    def __init__(self) -> None:
        """Draw the frequencies once; checkpoints store them."""
        super().__init__()
        self.register_buffer(
            "positional_encoding_gaussian_matrix", torch.randn(2, TOKEN_WIDTH // 2)
        )

    def forward(self, unit_xy: torch.Tensor) -> torch.Tensor:
        """[..., 2] (x, y) in 0..1 -> [..., 256], sines first."""
        angles = 2 * math.pi * ((2 * unit_xy - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def grid(self, size: int) -> torch.Tensor:
        """The encoding of every cell centre of a size x size map: [1, 256, size, size]."""
        matrix = self.positional_encoding_gaussian_matrix
        centres = (torch.arange(size, device=matrix.device, dtype=matrix.dtype) + 0.5) / size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self(torch.stack([x, y], dim=-1)).permute(2, 0, 1).unsqueeze(0)


def assemble_points(
    point_coords: torch.Tensor | None,
    point_labels: torch.Tensor | None,
    box_xyxy: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One list of labelled points for prompts that all have the same form.

    Args:
        point_coords: [B, N, 2] (x, y) in the S frame, or None.
        point_labels: [B, N], or None.
        box_xyxy: [B, 4] in the S frame, or None.

    Returns:
        Coordinates [B, T, 2] and labels [B, T]: the points, then the two corners of the box, or one
        padding point where points came without a box.

    Raises:
        ValueError: Neither points nor a box were given.
    """
    if point_coords is None or point_labels is None:
        if box_xyxy is None:
            raise ValueError("a prompt needs points or a box")
        corners = box_xyxy.reshape(-1, 2, 2)
        return corners, _corner_labels(box_xyxy)
    if box_xyxy is None:
        padding = point_coords.new_zeros(len(point_coords), 1, 2)
        padding_label = point_labels.new_full((len(point_labels), 1), PADDING)
        return torch.cat([point_coords, padding], 1), torch.cat([point_labels, padding_label], 1)
    coords = torch.cat([point_coords, box_xyxy.reshape(-1, 2, 2)], 1)
    return coords, torch.cat([point_labels, _corner_labels(box_xyxy).to(point_labels)], 1)


def _corner_labels(box_xyxy: torch.Tensor) -> torch.Tensor:
    return box_xyxy.new_tensor([TOP_LEFT, BOTTOM_RIGHT]).expand(len(box_xyxy), 2)


class PromptEncoder(nn.Module):
    """Labelled points and an earlier mask to tokens (6,220 parameters)."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.pe_layer = PositionalEncoding()
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, TOKEN_WIDTH) for _ in range(4)])
        self.not_a_point_embed = nn.Embedding(1, TOKEN_WIDTH)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, kernel_size=2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, kernel_size=2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, TOKEN_WIDTH, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, TOKEN_WIDTH)

    def sparse(
        self, point_coords: torch.Tensor, point_labels: torch.Tensor, input_size: int
    ) -> torch.Tensor:
        """Labelled points as tokens.

        Args:
            point_coords: [B, T, 2] (x, y) in the frame of the S x S input; half a pixel is added
                here, so that whole numbers mean pixel centres.
            point_labels: [B, T], -2 to 3 as named at the top of this file.
            input_size: S.

        Returns:
            [B, T, 256].
        """
        labels = point_labels.unsqueeze(-1)
        position = self.pe_layer((point_coords + 0.5) / input_size)
        tokens = torch.where(labels >= NEGATIVE, position, torch.zeros_like(position))
        learned: list[tuple[int, Any]] = [
            (PADDING, self.not_a_point_embed),
            *enumerate(self.point_embeddings),
        ]
        for label, embedding in learned:
            tokens = tokens + (labels == label).to(tokens.dtype) * embedding.weight
        return tokens

    def dense(self, mask_input: torch.Tensor | None, embedding_size: int) -> torch.Tensor:
        """An earlier mask as a map that is added to the image embedding.

        Args:
            mask_input: [B, 1, S/4, S/4] low-res logits, or None.
            embedding_size: S/16.

        Returns:
            [B, 256, S/16, S/16], or [1, 256, 1, 1] (to be broadcast) without a mask.

        Raises:
            ValueError: The mask is of another size.
        """
        if mask_input is None:
            return self.no_mask_embed.weight.reshape(1, TOKEN_WIDTH, 1, 1)
        if mask_input.shape[-1] != 4 * embedding_size:
            raise ValueError(
                f"mask_input: expected {4 * embedding_size} a side, got {mask_input.shape[-1]}"
            )
        return self.mask_downscaling(mask_input)
