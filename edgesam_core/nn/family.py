"""Which networks there are, and which of them a checkpoint is.

A checkpoint is recognised by one tensor that no other architecture has in that shape; everything
else is then demanded by strict loading (checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from edgesam_core.bundle import Bundle
from edgesam_core.errors import BundleError
from edgesam_core.nn.checkpoint import load_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.fpn import UpsampleMode
from edgesam_core.nn.sam_model import SamModel
from edgesam_core.nn.sam_vit import VIT_B, VIT_H, VIT_L, VitSize, build_sam_vit
from edgesam_core.nn.tiny_vit import build_mobile_sam

_ENCODER = "image_encoder."


@dataclass(frozen=True)
class Architecture:
    """A network that can be built, trained from or served."""

    description: str
    # for a model card
    build: Callable[[], SamModel]
    # with random weights
    mark: tuple[str, tuple[int, ...]]
    # key and shape of the tensor that tells it from all others


def _sam(letter: str, size: VitSize) -> Architecture:
    name, side = f"sam_vit_{letter}", size.input_size // 16
    return Architecture(
        f"SAM with the image encoder ViT-{letter.upper()}",
        partial(build_sam_vit, name, size),
        (f"{_ENCODER}pos_embed", (1, side, side, size.width)),
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "edge_sam": Architecture(
        "EdgeSAM (RepViT-M1 encoder, SAM's prompt encoder and mask decoder)",
        EdgeSam,
        (f"{_ENCODER}features.0.0.c.weight", (24, 3, 3, 3)),
    ),
    "edge_sam_m2_3": Architecture(
        "EdgeSAM's larger sister (RepViT-M2.3 encoder, SAM's prompt encoder and mask decoder)",
        partial(EdgeSam, trunk="repvit_m2_3"),
        (f"{_ENCODER}backbone.stem.conv1.c.weight", (40, 3, 3, 3)),
    ),
    "mobile_sam": Architecture(
        "MobileSAM (TinyViT-5M encoder, SAM's prompt encoder and mask decoder)",
        build_mobile_sam,
        (f"{_ENCODER}patch_embed.seq.0.c.weight", (32, 3, 3, 3)),
    ),
    "sam_vit_b": _sam("b", VIT_B),
    "sam_vit_l": _sam("l", VIT_L),
    "sam_vit_h": _sam("h", VIT_H),
}
"""Name (``architecture`` in a bundle's manifest) -> network."""


def recognise(state_dict: Mapping[str, torch.Tensor]) -> str:
    """The name of the architecture whose tensors these are.

    Raises:
        BundleError: It is none of ours; the sentence says by which tensor.
    """
    marks = {name: architecture.mark for name, architecture in ARCHITECTURES.items()}
    for name, (key, shape) in marks.items():
        if key in state_dict and tuple(state_dict[key].shape) == shape:
            return name
    for key in {key for key, _ in marks.values()} & state_dict.keys():
        shapes = [list(shape) for k, shape in marks.values() if k == key]
        raise BundleError(
            f"The checkpoint is of no known architecture: {key!r} has the shape "
            f"{list(state_dict[key].shape)}, known are {', '.join(map(str, shapes))}."
        )
    first = next(iter(state_dict), "nothing")
    raise BundleError(
        f"The checkpoint is of no known architecture ({', '.join(marks)}): its "
        f"{len(state_dict)} tensors begin with {first!r}, and none of the keys is there that tell "
        f"these apart, such as {marks['edge_sam'][0]!r}.",
        detail=f"looked for {sorted({key for key, _ in marks.values()})}",
    )


def model_from(
    state_dict: Mapping[str, torch.Tensor],
    *,
    upsample: UpsampleMode = "bicubic",
    draws_prompts: bool = False,
) -> SamModel:
    """The network that a state dict belongs to, with its weights, in evaluation mode.

    Args:
        state_dict: Under published names.
        upsample: How EdgeSAM's feature pyramid enlarges; the weights do not say. No other network
            has one.
        draws_prompts: Whether its decoder sees prompts drawn as a map (drawn_prompts.py); the
            weights do not say that either.

    Raises:
        BundleError: The architecture is unknown, or a tensor is missing, unknown or misshapen.
    """
    model = ARCHITECTURES[recognise(state_dict)].build()
    load_state_dict(model, state_dict)
    model.draws_prompts = draws_prompts
    if isinstance(model, EdgeSam):
        model.image_encoder.fuse_stage3.mode = upsample
    return model.eval()


def read_model(path: Path) -> SamModel:
    """A network from a checkpoint (.pth, .pt, .safetensors) or from a bundle's folder.

    A bundle also says how its network is run: input size, up-sampling, drawn prompts. A checkpoint
    of EdgeSAM is taken for what is published: bicubic, nothing drawn.

    Raises:
        BundleError: It cannot be read, is of no known architecture, or the bundle has no weights.
    """
    if not path.is_dir():
        return model_from(read_checkpoint(path))
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if bundle.weights_path is None:
        raise BundleError(
            f"The model {manifest.name!r} holds no weights, only graphs. Give a checkpoint instead."
        )
    model = model_from(
        read_checkpoint(bundle.weights_path),
        upsample="bilinear" if manifest.upsample == "bilinear" else "bicubic",
        draws_prompts=manifest.draws_prompts,
    )
    model.input_size = manifest.input_size
    return model
