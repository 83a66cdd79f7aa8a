"""Weights become a bundle: both graphs, the weights to train on from, a manifest and a card.

What is written is checked first (parity.py) and appears at once or not at all (bundle.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgesam_core.bundle import WEIGHTS_NAME, staged_folder, write_manifest
from edgesam_core.errors import BundleError
from edgesam_core.export.decoder import export_decoder
from edgesam_core.export.encoder import export_encoder
from edgesam_core.export.granularity import export_with_granularity
from edgesam_core.export.parity import ParityReport, check_parity
from edgesam_core.manifest import SAM_DECODERS
from edgesam_core.nn.checkpoint import load_state_dict, official_state_dict
from edgesam_core.nn.family import ARCHITECTURES, model_from
from edgesam_core.nn.fpn import UpsampleMode
from edgesam_core.nn.granularity import build_granularity_prior
from edgesam_core.nn.sam_model import SamModel

CARD_NAME = "MODEL_CARD.md"


def write_bundle(
    model: SamModel | Mapping[str, torch.Tensor],
    out_dir: Path,
    *,
    name: str,
    input_size: int,
    upsample: UpsampleMode = "bicubic",
    draws_prompts: bool = False,
    refines_with_mask_input: bool = False,
    trusts_iou_prediction: bool | None = None,
    leaves_out_padding: bool = False,
    licence: str = "unknown",
    origin: str = "Nobody said where these weights come from.",
    scores: Mapping[str, Any] | None = None,
    model_card: str | None = None,
    half: bool = True,
    overwrite: bool = False,
) -> Path:
    """Make a bundle that can be served.

    Args:
        model: A network of SAM's family, or its published state dict. Left as it is. A state dict
            that has a granularity prior beside EdgeSAM (nn/granularity.py) gives a third graph.
        out_dir: The folder to appear.
        name: What people call the model.
        input_size: S in pixels, a multiple of 64; 1024 for official weights.
        upsample: How EdgeSAM's feature pyramid enlarges; "bicubic" is what it was trained with.
            This and the next are for a state dict, which does not say; a model does itself.
        draws_prompts: Whether the decoder draws prompts as a map, too (nn/drawn_prompts.py); as the
            weights were trained.
        refines_with_mask_input: Whether earlier logits may be fed back; True only where that was
            measured not to hurt.
        trusts_iou_prediction: Whether a mask may be chosen by the decoder's own estimate; None
            means as published: SAM's and MobileSAM's yes, EdgeSAM's no.
        leaves_out_padding: Whether the padded part of an image is not computed (export/encoder.py);
            True only where that was measured not to hurt, and without a granularity prior.
        licence: Licence of the weights, as an SPDX id or a name.
        origin: A sentence that says where the weights come from.
        scores: Measured quality, for the manifest.
        model_card: Text of ``MODEL_CARD.md``; None writes a short one from the other arguments.
        half: Keep the graphs small, too (20 instead of 39 MB): they get the same rounded weights
            that ``weights.safetensors`` always holds. That is no loss to speak of for a model that
            was trained here and is measured as it is stored; published weights are better exported
            as they are (rounded, the parity weights' ragged masks have an IoU of 0.9989 with
            those of the original).
        overwrite: Take the place of a bundle that is there.

    Returns:
        ``out_dir``.

    Raises:
        BundleError: The input size is no multiple of 64 or not the network's, the weights are of an
            unknown architecture or do not fit theirs, the exported graphs answer otherwise than
            PyTorch, or the folder is there already. No file is left then.
        ValueError: A model came with what only a state dict must be told, or padding is to be left
            out where the network needs it.
        OSError: The folder cannot be written.
    """
    if input_size <= 0 or input_size % 64:
        raise BundleError(f"The input size {input_size} is no multiple of 64.")
    if isinstance(model, SamModel):
        if (upsample, draws_prompts) != ("bicubic", False):
            raise ValueError("upsample, draws_prompts: expected with a state dict only")
        exported = copy.deepcopy(model).cpu().eval()
    else:
        exported = model_from(model, upsample=upsample, draws_prompts=draws_prompts)
    if exported.input_size not in (None, input_size):
        raise BundleError(
            f"{exported.architecture} takes images of {exported.input_size} pixels a side, "
            f"not {input_size}."
        )
    prior = None if isinstance(model, SamModel) else build_granularity_prior(model)
    weights = official_state_dict(exported) | ({} if prior is None else prior.state_dict())
    if prior is not None and leaves_out_padding:
        raise ValueError("leaves_out_padding: expected without a granularity prior")
    rounded = {key: _rounded(tensor) for key, tensor in weights.items()}
    prior = build_granularity_prior(rounded if half else weights)
    if half:
        load_state_dict(exported, rounded)

    with staged_folder(out_dir, overwrite=overwrite) as folder:
        encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
        if prior is None:
            export_encoder(
                exported, encoder, input_size=input_size, leaves_out_padding=leaves_out_padding
            )
        else:
            export_with_granularity(exported, prior, folder, input_size=input_size)
        export_decoder(exported, decoder, input_size=input_size)
        report = check_parity(exported, encoder, decoder, input_size=input_size)
        save_file(rounded, folder / WEIGHTS_NAME)
        (folder / WEIGHTS_NAME).chmod(0o644)  # safetensors writes 0600
        card = model_card or _card(name, input_size, exported, licence, origin, scores, report)
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
        write_manifest(
            folder,
            name=name,
            input_size=input_size,
            architecture=exported.architecture,
            upsample=exported.upsample,
            draws_prompts=exported.draws_prompts,
            trusts_iou_prediction=(
                exported.architecture in SAM_DECODERS
                if trusts_iou_prediction is None
                else trusts_iou_prediction
            ),
            refines_with_mask_input=refines_with_mask_input,
            leaves_out_padding=leaves_out_padding,
            licence=licence,
            origin=origin,
            scores=scores,
        )
    return out_dir


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as ``weights.safetensors`` holds it.

    Matrices and kernels are rounded to fp16. Vectors (norms with their statistics, biases) stay
    fp32: together 0.3 MB, and a running variance may be smaller than fp16 can say.
    """
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    halves = tensor.half()
    return halves if tensor.ndim > 1 and bool(halves.isfinite().all()) else tensor.float()


def _card(
    name: str,
    input_size: int,
    model: SamModel,
    licence: str,
    origin: str,
    scores: Mapping[str, Any] | None,
    report: ParityReport,
) -> str:
    """A model card that says what is known, and no more."""
    pyramid = "" if model.upsample == "none" else f", {model.upsample} feature pyramid"
    measured = "\n".join(f"- {key}: {value}" for key, value in (scores or {}).items())
    return (
        f"# {name}\n\n"
        f"{ARCHITECTURES[model.architecture].description}, input {input_size} x {input_size}"
        f"{pyramid}.\n\n"
        f"- Where the weights come from: {origin}\n"
        f"- Licence of the weights: {licence}\n"
        f"- Export: {report.sentence()}\n\n"
        f"## Measured quality\n\n{measured or 'Not measured.'}\n"
    )
