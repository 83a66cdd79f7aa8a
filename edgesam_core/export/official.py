"""The graphs as EdgeSAM's own scripts export them: a peer for benchmarks, a case for tests.

Nothing is served from here. Users bring such files as ``edge_sam_3x_encoder.onnx`` and
``edge_sam_3x_decoder.onnx``; we make our own from any weights, to compare with and to test that
they are served right. What differs from our export: branches not folded, bilinear up-sampling in
the feature pyramid, stability scores before the masks, one prompt at a time, no mask input.

Source:
    EdgeSAM's ``scripts/export_onnx_model.py`` with ``--use-stability-score``, as published.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from edgesam_core.export.graph import trace
from edgesam_core.nn.edge_sam import EdgeSam

ENCODER_NAME = "edge_sam_3x_encoder.onnx"
DECODER_NAME = "edge_sam_3x_decoder.onnx"

# The official files are opset 11, which has no way to write the attention of today's PyTorch.
_ENCODER_OPSET, _DECODER_OPSET = 11, 14


class OfficialDecoder(nn.Module):
    """The decoder with the inputs and outputs of the official export."""

    def __init__(self, model: EdgeSam, input_size: int) -> None:
        """Share a model in evaluation mode, for an input of S pixels a side."""
        super().__init__()
        self.model, self.input_size = model, input_size

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One prompt: stability scores [1, 4] and low-res logits [1, 4, 4s, 4s].

        Args:
            image_embeddings: [1, 256, s, s].
            point_coords: [1, N, 2] (x, y) in the S frame.
            point_labels: [1, N] float32, -1 to 3.
        """
        prompts, side = self.model.prompt_encoder, self.input_size // 16
        logits, _ = self.model.mask_decoder(
            image_embeddings,
            prompts.pe_layer.grid(side),
            prompts.sparse(point_coords, point_labels, self.input_size),
            prompts.dense(None, side),
        )
        inner, outer = (
            (logits > threshold).flatten(2).sum(-1, dtype=torch.float32) for threshold in (1, -1)
        )
        return inner / outer, logits


def export_official(model: EdgeSam, folder: Path, *, input_size: int = 1024) -> tuple[Path, Path]:
    """Export a model the way the official scripts do.

    Args:
        model: In evaluation mode; left as it is.
        folder: Where to write the two files.
        input_size: S in pixels; the official files are 1024.

    Returns:
        The encoder's and the decoder's path, under the names of the published files.
    """
    encoder = copy.deepcopy(model.image_encoder)
    encoder.fuse_stage3.mode = "bilinear"
    trace(
        encoder,
        {"image": torch.zeros(1, 3, input_size, input_size)},
        ["image_embeddings"],
        folder / ENCODER_NAME,
        opset=_ENCODER_OPSET,
    )
    side = input_size // 16
    trace(
        OfficialDecoder(model, input_size).eval(),
        {
            "image_embeddings": torch.zeros(1, 256, side, side),
            "point_coords": torch.zeros(1, 5, 2),
            "point_labels": torch.ones(1, 5),
        },
        ["scores", "masks"],
        folder / DECODER_NAME,
        opset=_DECODER_OPSET,
        dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
    )
    return folder / ENCODER_NAME, folder / DECODER_NAME
