"""Prompt encoder and mask decoder as one ONNX graph, for any number of points and prompts.

Place in a click's path: embedding + prompts -> low-res logits of all four masks, and the decoder's
own estimates. Unlike the official decoder it takes a batch of prompts and an earlier mask, and
returns logits first. As there, the padding point is the caller's: (0, 0) with label -1 after the
points of a prompt without a box.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgesam_core.export.graph import export_graph
from edgesam_core.nn.edge_sam import EdgeSam

INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")
OUTPUTS = ("low_res_logits", "iou_predictions")
DYNAMIC_AXES = {
    "point_coords": {0: "prompts", 1: "points"},
    "point_labels": {0: "prompts", 1: "points"},
    "mask_input": {0: "prompts"},
    "has_mask_input": {0: "prompts"},
    "low_res_logits": {0: "prompts"},
    "iou_predictions": {0: "prompts"},
}


class DecoderGraph(nn.Module):
    """The decoder in the form in which it is exported."""

    def __init__(self, model: EdgeSam, input_size: int) -> None:
        """Take over the model's parts and fix what depends on the size only.

        Args:
            model: In evaluation mode; its parts are shared, not copied.
            input_size: S in pixels.
        """
        super().__init__()
        self.prompt_encoder = model.prompt_encoder
        self.mask_decoder = model.mask_decoder
        self.input_size = input_size

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All four masks of every prompt.

        Args:
            image_embeddings: [1, 256, s, s], shared by all prompts.
            point_coords: [B, N, 2] (x, y) in the S frame; half a pixel is added here.
            point_labels: [B, N] float32, -2 to 3.
            mask_input: [B, 1, 4s, 4s] earlier logits; anything where there are none.
            has_mask_input: [B] float32, 1 or 0.

        Returns:
            low_res_logits [B, 4, 4s, 4s] and iou_predictions [B, 4].
        """
        sparse = self.prompt_encoder.sparse(point_coords, point_labels, self.input_size)
        with_mask = self.prompt_encoder.dense(mask_input, self.input_size // 16)
        without = self.prompt_encoder.dense(None, self.input_size // 16)
        dense = torch.where(has_mask_input.reshape(-1, 1, 1, 1) > 0, with_mask, without)
        logits: tuple[torch.Tensor, torch.Tensor] = self.mask_decoder(
            image_embeddings, self.prompt_encoder.pe_layer.grid(self.input_size // 16), sparse, dense
        )
        return logits


def export_decoder(model: EdgeSam, path: Path, *, input_size: int) -> None:
    """Write the prompt encoder and the mask decoder of a model.

    Args:
        model: Left as it is.
        path: The file to write.
        input_size: S in pixels, a multiple of 64.
    """
    s, prompts, points = input_size // 16, 2, 3
    example = {
        "image_embeddings": torch.zeros(1, 256, s, s),
        "point_coords": torch.zeros(prompts, points, 2),
        "point_labels": torch.ones(prompts, points),
        "mask_input": torch.zeros(prompts, 1, 4 * s, 4 * s),
        "has_mask_input": torch.tensor([0.0, 1.0]),
    }
    graph = DecoderGraph(model, input_size).eval()
    export_graph(graph, example, OUTPUTS, path, dynamic_axes=DYNAMIC_AXES)
