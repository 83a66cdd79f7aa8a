"""The image encoder as an ONNX graph: branches folded, bicubic kept.

Place in a click's path: ``image`` [1, 3, S, S] float32, normalised and padded ->
``image_embeddings`` [1, 256, S/16, S/16]. Of a convolutional encoder it can take any height and
width that are multiples of 32, so that the padded part of an image need not be computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgesam_core.export.fuse import fused
from edgesam_core.export.graph import export_graph
from edgesam_core.export.layer_norm import channels_last_norms
from edgesam_core.export.upsample import BicubicTwice
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.neck import EMBEDDING_CHANNELS
from edgesam_core.nn.sam_model import SamModel


def encoder_graph(model: SamModel) -> nn.Module:
    """The encoder in the form in which it is exported: same answers, fewer and faster nodes."""
    encoder: Any = channels_last_norms(fused(model.image_encoder))
    if isinstance(model, EdgeSam) and model.upsample == "bicubic":
        (convolution,) = encoder.fuse_stage3.op_list
        enlarged = nn.Sequential(convolution, BicubicTwice(EMBEDDING_CHANNELS))
        encoder.add_module("fuse_stage3", enlarged)
    graph: nn.Module = encoder
    return graph


def export_encoder(
    model: SamModel, path: Path, *, input_size: int, leaves_out_padding: bool = False
) -> None:
    """Write the encoder of a model.

    Args:
        model: Left as it is.
        path: The file to write.
        input_size: S in pixels, a multiple of 64.
        leaves_out_padding: Let the graph take any size; EdgeSAM only, since the others know their
            positions by S. encode.py then gives it no padding.

    Raises:
        ValueError: Another network's padding is to be left out.
    """
    if leaves_out_padding and not isinstance(model, EdgeSam):
        raise ValueError(f"leaves_out_padding: expected EdgeSAM, got {model.architecture}")
    example = {"image": torch.zeros(1, 3, input_size, input_size)}
    axes = {
        "image": {2: "height", 3: "width"},
        "image_embeddings": {2: "rows", 3: "columns"},
    }
    export_graph(
        encoder_graph(model),
        example,
        ["image_embeddings"],
        path,
        dynamic_axes=axes if leaves_out_padding else None,
    )
