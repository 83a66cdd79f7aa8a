"""Image embedding and prompt tokens to four masks with scores: SAM's mask decoder.

Mask 0 is the answer to an unambiguous prompt, masks 1 to 3 are the parts and wholes that a single
click may mean. All four are always computed; ``select_masks`` takes the slice that was asked for.

Paper: Segment Anything (arXiv 2304.02643), appendix A.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from edgesam_core.nn.layer_norm import LayerNorm2d
from edgesam_core.nn.transformer import WIDTH, TwoWayTransformer

NUM_MASKS = 4
MASK_WIDTH = 32


class TokenMlp(nn.Module):
    """Three linear layers with ReLUs, from one token to a vector."""

    def __init__(self, out_width: int) -> None:
        """Build with random weights."""
        super().__init__()
        widths = [WIDTH, WIDTH, WIDTH, out_width]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        """[B, 256] -> [B, out_width]."""
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(token)))))


class MaskDecoder(nn.Module):
    """Masks from an embedding and a prompt (4,058,340 parameters)."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.transformer = TwoWayTransformer()
        self.iou_token = nn.Embedding(1, WIDTH)
        self.mask_tokens = nn.Embedding(NUM_MASKS, WIDTH)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, WIDTH // 4, kernel_size=2, stride=2),
            LayerNorm2d(WIDTH // 4),
            nn.GELU(),
            nn.ConvTranspose2d(WIDTH // 4, MASK_WIDTH, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            [TokenMlp(MASK_WIDTH) for _ in range(NUM_MASKS)]
        )
        self.iou_prediction_head = TokenMlp(NUM_MASKS)

    def transform(
        self,
        image_embedding: torch.Tensor,
        dense_position: torch.Tensor,
        sparse: torch.Tensor,
        dense: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The transformer's output tokens [B, 5 + T, 256] and image [B, 256, s, s]; see forward."""
        batch, _, height, width = sparse.shape[0], *image_embedding.shape[1:]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(batch, -1, -1), sparse], dim=1)
        image = (image_embedding + dense).expand(batch, -1, -1, -1)
        image = image.flatten(2).transpose(1, 2)  # [B, s*s, 256]
        position = dense_position.flatten(2).transpose(1, 2)  # [1, s*s, 256]
        tokens, image = self.transformer(tokens, image, position)
        return tokens, image.transpose(1, 2).unflatten(2, (height, width))

    def forward(
        self,
        image_embedding: torch.Tensor,
        dense_position: torch.Tensor,
        sparse: torch.Tensor,
        dense: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All four masks of every prompt.

        Args:
            image_embedding: [B, 256, s, s], or [1, ...] where all prompts share one image.
            dense_position: [1, 256, s, s] encoding of the cell centres.
            sparse: [B, T, 256] prompt tokens.
            dense: [B, 256, s, s] or [1, 256, 1, 1] dense prompt.

        Returns:
            low_res_logits [B, 4, 4s, 4s] and iou_predictions [B, 4] (no sigmoid).
        """
        tokens, image = self.transform(image_embedding, dense_position, sparse, dense)
        pixels = self.output_upscaling(image)  # [B, 32, 4s, 4s]
        classifiers = torch.stack(
            [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )  # [B, 4, 32]
        logits = (classifiers @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
        return logits, self.iou_prediction_head(tokens[:, 0])


def select_masks(masks_or_scores: torch.Tensor, num_multimask_outputs: int) -> torch.Tensor:
    """The slice of the four masks (or of their scores) that was asked for.

    Args:
        masks_or_scores: [B, 4, ...].
        num_multimask_outputs: 1 gives mask 0; 3 gives masks 1 to 3 (SAM's multimask output); 4 all
            (EdgeSAM's).

    Raises:
        ValueError: Any other number.
    """
    slices = {1: slice(0, 1), 3: slice(1, 4), 4: slice(0, 4)}
    if num_multimask_outputs not in slices:
        raise ValueError(f"num_multimask_outputs: expected 1, 3 or 4, got {num_multimask_outputs}")
    return masks_or_scores[:, slices[num_multimask_outputs]]
