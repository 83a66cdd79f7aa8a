"""Official EdgeSAM state dicts in and out: 821 tensors, loaded strictly.

A checkpoint names the backbone ``image_encoder.features.N...``; our modules hold timm's backbone,
so only those 676 keys are renamed, by the one table that ``_prefixes`` writes down. Nothing is
unpickled: ``.pth`` files are read with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch

from edgesam_core.errors import BundleError
from edgesam_core.nn.edge_sam import EdgeSam

_BLOCK = (
    ("token_mixer.0.conv.", "token_mixer.conv."),
    ("token_mixer.0.conv1.", "token_mixer.conv1."),
    ("token_mixer.1.", "se."),
    ("channel_mixer.m.0.", "channel_mixer.conv1."),
    ("channel_mixer.m.2.", "channel_mixer.conv2."),
)
_DOWNSAMPLE = (
    ("token_mixer.0.", "spatial_downsample."),
    ("token_mixer.2.", "channel_downsample."),
    ("channel_mixer.m.0.", "ffn.conv1."),
    ("channel_mixer.m.2.", "ffn.conv2."),
)


def _prefixes() -> dict[str, str]:
    """Official prefix -> ours, for every named part of the backbone.

    Source:
        The published layout. Stages end with blocks 3, 7, 23 and 26; blocks 4, 8 and 24 halve the
        size; timm counts the last block of stages 0 to 2 to the next stage's downsampling.
    """
    table = {"0.0.": "stem.conv1.", "0.2.": "stem.conv2."}
    ends = (0, 3, 7, 23, 26)
    for stage, (start, end) in enumerate(pairwise(ends)):
        blocks = list(range(start + 1, end + 1))
        if stage > 0:
            down = blocks.pop(0)
            table |= {f"{down}.{a}": f"stages.{stage}.downsample.{b}" for a, b in _DOWNSAMPLE}
        if stage < 3:
            last = blocks.pop()
            pre_block = f"stages.{stage + 1}.downsample.pre_block"
            table |= {f"{last}.{a}": f"{pre_block}.{b}" for a, b in _BLOCK}
        for i, block in enumerate(blocks):
            table |= {f"{block}.{a}": f"stages.{stage}.blocks.{i}.{b}" for a, b in _BLOCK}
    encoder = "image_encoder."
    return {f"{encoder}features.{a}": f"{encoder}backbone.{b}" for a, b in table.items()}


def _rename(keys: Mapping[str, torch.Tensor], table: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The same tensors, with every prefix of the table replaced; other keys as they are."""

    def renamed(key: str) -> str:
        # Every prefix ends with a dot, so only the prefixes of the key itself need a look.
        ends = [i + 1 for i, letter in enumerate(key) if letter == "."]
        match = next((key[:end] for end in reversed(ends) if key[:end] in table), "")
        return table.get(match, "") + key.removeprefix(match)

    return {renamed(key): tensor for key, tensor in keys.items()}


def load_state_dict(model: EdgeSam, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Load an official state dict strictly.

    Args:
        model: Changed in place.
        state_dict: The 821 official tensors, fp32 or fp16.

    Raises:
        BundleError: A tensor is missing, unknown or of another shape; ``detail`` names them.
    """
    try:
        model.load_state_dict(_rename(state_dict, _prefixes()), strict=True)
    except RuntimeError as exc:
        raise BundleError(
            f"The checkpoint is not an EdgeSAM state dict: its {len(state_dict)} tensors do "
            f"not fit the {len(model.state_dict())} expected ones.",
            detail=str(exc),
        ) from exc


def official_state_dict(model: EdgeSam) -> dict[str, torch.Tensor]:
    """The model's 821 tensors under their official names, detached, on the CPU."""
    ours_to_official = {ours: official for official, ours in _prefixes().items()}
    tensors = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    return _rename(tensors, ours_to_official)


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.pth`` or ``.safetensors`` file, without running anything in it.

    Raises:
        BundleError: The file cannot be read, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # each reader has errors of its own; to the caller all mean the same
        raise BundleError(
            f"{path.name} could not be read as a checkpoint. "
            "Use a .pth or .safetensors file that holds tensors only.",
            detail=str(exc),
        ) from exc
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not all(torch.is_tensor(v) for v in loaded.values()):
        raise BundleError(f"{path.name} holds something else than a table of tensors.")
    return dict(loaded)
