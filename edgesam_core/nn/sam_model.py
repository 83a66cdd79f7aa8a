"""A network of SAM's family: any image encoder, SAM's prompt encoder, SAM's mask decoder.

The last two have the same 137 tensors in SAM ViT-B, ViT-L, ViT-H, MobileSAM and EdgeSAM; only
the image encoder differs (edge_sam.py, sam_vit.py, tiny_vit.py). Training and export use this;
serving runs the exported graphs and never imports it.

Paper: Segment Anything (arXiv 2304.02643).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgesam_core.nn.drawn_prompts import draw_prompts
from edgesam_core.nn.mask_decoder import MaskDecoder, select_masks
from edgesam_core.nn.prompt_encoder import PromptEncoder, assemble_points


class SamModel(nn.Module):
    """Image and prompts to masks.

    Attributes:
        architecture: Which network it is, a name of ``family.ARCHITECTURES``.
        input_size: S in pixels, the side of the images that it must be fed; None where any
            multiple of 64 will do.
        published_prefixes: Key prefix in published checkpoints -> prefix in this module, where
            they differ (checkpoint.py).
    """

    def __init__(
        self,
        architecture: str,
        image_encoder: nn.Module,
        *,
        published_prefixes: Mapping[str, str],
        input_size: int | None = None,
        draws_prompts: bool = False,
    ) -> None:
        """Put an image encoder before a prompt encoder and a mask decoder with random weights.

        Args:
            architecture: The network's name.
            image_encoder: [B, 3, S, S] -> [B, 256, S/16, S/16].
            published_prefixes: See the attribute.
            input_size: See the attribute.
            draws_prompts: Whether prompts are drawn as a map, too (drawn_prompts.py). Published
                weights were trained without.
        """
        super().__init__()
        self.architecture = architecture
        self.published_prefixes = dict(published_prefixes)
        self.input_size = input_size
        self.draws_prompts = draws_prompts
        self.image_encoder = image_encoder
        self.prompt_encoder = PromptEncoder()
        self.mask_decoder = MaskDecoder()

    @property
    def upsample(self) -> str:
        """How a feature pyramid enlarges: "none" where the encoder has none."""
        return "none"

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] normalised and padded -> image embedding [B, 256, S/16, S/16]."""
        embedding: torch.Tensor = self.image_encoder(image)
        return embedding

    def decode(
        self,
        image_embedding: torch.Tensor,
        *,
        point_coords: torch.Tensor | None = None,
        point_labels: torch.Tensor | None = None,
        box_xyxy: torch.Tensor | None = None,
        mask_input: torch.Tensor | None = None,
        num_multimask_outputs: int = 4,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks for prompts that all have the same number of points.

        Args:
            image_embedding: [B, 256, s, s], or [1, ...] where all prompts share one image.
            point_coords: [B, N, 2] (x, y) in the frame of the S x S input.
            point_labels: [B, N], -2 to 3.
            box_xyxy: [B, 4] in the same frame.
            mask_input: [B, 1, S/4, S/4] earlier low-res logits.
            num_multimask_outputs: 1, 3 or 4.

        Returns:
            low_res_logits [B, M, S/4, S/4] and iou_predictions [B, M].

        Raises:
            ValueError: Neither points nor a box, a mask input of another size, or another M.
        """
        coords, labels = assemble_points(point_coords, point_labels, box_xyxy)
        size = image_embedding.shape[-1]
        if self.draws_prompts:
            mask_input = draw_prompts(coords, labels, mask_input, None, 16 * size)
        logits, iou_predictions = self.mask_decoder(
            image_embedding,
            self.prompt_encoder.pe_layer.grid(size),
            self.prompt_encoder.sparse(coords, labels, 16 * size),
            self.prompt_encoder.dense(mask_input, size),
        )
        return (
            select_masks(logits, num_multimask_outputs),
            select_masks(iou_predictions, num_multimask_outputs),
        )
