"""The granularity prior as the third graph of a bundle, and the encoder that feeds it.

Beside a click's path: ``stage1``, ``stage2``, ``stage3`` -> ``objectness_logits`` [1, A] and
``deltas`` [1, A, 4] of all anchors; edgesam_core/granularity.py makes boxes of them.

Where the features come from: in a bundle with a prior, and only there, the encoder's graph hands
out three of its inner maps beside the embedding. Nothing is computed for them, so whoever does not
ask for proposals pays next to nothing, and a bundle without a prior has the encoder that it always
had. A third graph with an encoder of its own would have been simpler, and would have doubled the
time of an image and the size of the bundle.

Measured with the parity weights at S = 1024, ONNX Runtime, one thread of a busy server CPU, fastest
of nine runs (the runs differed by more than the first three do): encoder without features 365 ms,
with features that nobody asks for 383 ms, with features 372 ms; the prior itself 63 ms, 8,000 boxes
of it 13 ms. Peak memory of the process 257, 268, 315 and 360 MB. The third graph is 1.3 MB.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgesam_core.errors import BundleError
from edgesam_core.export.encoder import encoder_graph
from edgesam_core.export.graph import export_graph
from edgesam_core.granularity import FEATURES, OUTPUTS
from edgesam_core.manifest import GRANULARITY_NAME
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.fpn import ImageEncoder
from edgesam_core.nn.granularity import GranularityPrior
from edgesam_core.nn.repvit import stage_outputs
from edgesam_core.nn.sam_model import SamModel
from edgesam_core.session import open_session, run_graph

MAX_DIFFERENCE = 1e-3
"""Of a logit or a delta (both of size 1): fp32 in another order gives about 1e-5."""


class EncoderWithFeatures(nn.Module):
    """The image encoder, and what the granularity prior looks at."""

    def __init__(self, encoder: ImageEncoder) -> None:
        """Share an encoder."""
        super().__init__()
        self.encoder = encoder

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, 3, S, S] -> the image embedding, stage1, stage2, stage3."""
        _, stage1, stage2, stage3 = stage_outputs(self.encoder.backbone, image)
        return self.encoder.embed(stage2, stage3), stage1, stage2, stage3


def export_with_granularity(
    model: SamModel, prior: GranularityPrior, folder: Path, *, input_size: int
) -> None:
    """Write ``encoder.onnx`` and ``granularity.onnx`` of a bundle, and check that they fit.

    Args:
        model: Left as it is.
        prior: In evaluation mode; left as it is.
        folder: Of the bundle.
        input_size: S in pixels, a multiple of 64.

    Raises:
        BundleError: The model is not EdgeSAM, or the graphs answer otherwise than PyTorch.
    """
    if not isinstance(model, EdgeSam):
        raise BundleError(f"A granularity prior goes with EdgeSAM, not with {model.architecture}.")
    encoder, granularity = folder / "encoder.onnx", folder / GRANULARITY_NAME
    export_encoder_with_features(model, encoder, input_size=input_size)
    export_granularity(prior, granularity, input_size=input_size)
    check_granularity_parity(model, prior, encoder, granularity, input_size=input_size)


def export_encoder_with_features(model: EdgeSam, path: Path, *, input_size: int) -> None:
    """Write the encoder of a model that a granularity prior goes with.

    Args:
        model: Left as it is.
        path: The file to write.
        input_size: S in pixels, a multiple of 64.
    """
    example = {"image": torch.zeros(1, 3, input_size, input_size)}
    graph = EncoderWithFeatures(cast(ImageEncoder, encoder_graph(model))).eval()
    export_graph(graph, example, ["image_embeddings", *FEATURES], path)


def export_granularity(prior: GranularityPrior, path: Path, *, input_size: int) -> None:
    """Write a granularity prior.

    Args:
        prior: In evaluation mode; left as it is.
        path: The file to write.
        input_size: S in pixels, a multiple of 64.
    """
    export_graph(prior, _features(prior, input_size), OUTPUTS, path)


def check_granularity_parity(
    model: EdgeSam,
    prior: GranularityPrior,
    encoder_path: Path,
    granularity_path: Path,
    *,
    input_size: int,
) -> float:
    """Do encoder and granularity graph together answer as PyTorch does?

    Args:
        model: With exactly the weights that were exported, as ``prior``.
        prior: In evaluation mode.
        encoder_path: From `export_encoder_with_features`.
        granularity_path: From `export_granularity`.
        input_size: S in pixels.

    Returns:
        The largest difference of a logit or a delta, on noise.

    Raises:
        BundleError: It is too large; the sentence says how large.
    """
    shape = (1, 3, input_size, input_size)
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    with torch.no_grad():
        _, *stages = stage_outputs(model.image_encoder.backbone, torch.from_numpy(image))
        expected = [output.numpy() for output in prior(*stages)]
    features = run_graph(open_session(encoder_path), {"image": image}, FEATURES)
    inputs: dict[str, npt.NDArray[np.float32]] = dict(zip(FEATURES, features, strict=True))
    actual = run_graph(open_session(granularity_path), inputs, OUTPUTS)
    differences = [np.abs(a - e).max() for a, e in zip(actual, expected, strict=True)]
    worst = float(np.max(differences))  # Python's max passes over a NaN that is not the first
    if not worst <= MAX_DIFFERENCE:  # NaN fails, too
        raise BundleError(
            f"The exported granularity graph differs from PyTorch by {worst:.2g}, at most "
            f"{MAX_DIFFERENCE:g} is allowed. No bundle was written."
        )
    return worst


def _features(prior: GranularityPrior, input_size: int) -> dict[str, torch.Tensor]:
    """Maps of the right shapes to trace with."""
    return {
        name: torch.zeros(1, channels, input_size // stride, input_size // stride)
        for name, channels, stride in zip(FEATURES, prior.in_channels, (8, 16, 32), strict=True)
    }
