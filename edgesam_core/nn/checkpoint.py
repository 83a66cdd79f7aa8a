"""State dicts under their published names, in and out, loaded strictly.

Our modules hold timm's backbones, so some keys are renamed, by the one table of prefixes that each
model carries (``published_prefixes``). Nothing is unpickled: ``.pth`` and ``.pt`` files are read
with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from edgesam_core.errors import BundleError
from edgesam_core.nn.granularity import is_granularity_key
from edgesam_core.nn.sam_model import SamModel


def _rename(keys: Mapping[str, torch.Tensor], table: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The same tensors, with every prefix of the table replaced; other keys as they are."""

    def renamed(key: str) -> str:
        # Every prefix ends with a dot, so only the prefixes of the key itself need a look.
        ends = [i + 1 for i, letter in enumerate(key) if letter == "."]
        match = next((key[:end] for end in reversed(ends) if key[:end] in table), "")
        return table.get(match, "") + key.removeprefix(match)

    return {renamed(key): tensor for key, tensor in keys.items()}


def load_state_dict(model: SamModel, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Load a published state dict strictly.

    Args:
        model: Changed in place.
        state_dict: All tensors of the architecture under their published names, fp32 or fp16.

    Raises:
        BundleError: A tensor is missing, unknown or of another shape; the sentence names the first
            and ``detail`` all. (A granularity prior beside them is passed over.)
    """
    state_dict = {k: tensor for k, tensor in state_dict.items() if not is_granularity_key(k)}
    misfits = _misfits(state_dict, _published(model))
    if misfits:
        more = f", and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        raise BundleError(
            f"The checkpoint is not {model.architecture}'s: {misfits[0]}{more}.",
            detail="; ".join(misfits),
        )
    model.load_state_dict(_rename(state_dict, model.published_prefixes), strict=True)


def _misfits(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """What keeps tensors from being loaded, one phrase for each."""
    return [
        *(f"{key!r} is missing" for key in expected if key not in actual),
        *(f"{key!r} is unknown" for key in actual if key not in expected),
        *(
            f"{key!r} has the shape {list(actual[key].shape)} instead of {list(tensor.shape)}"
            for key, tensor in expected.items()
            if key in actual and actual[key].shape != tensor.shape
        ),
    ]


def official_state_dict(model: SamModel) -> dict[str, torch.Tensor]:
    """The model's tensors under their published names, detached, on the CPU."""
    return {key: tensor.cpu() for key, tensor in _published(model).items()}


def _published(model: SamModel) -> dict[str, torch.Tensor]:
    """The model's own tensors under their published names."""
    return _rename(model.state_dict(), {b: a for a, b in model.published_prefixes.items()})


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.pth``, ``.pt`` or ``.safetensors`` file, without running anything in it.

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
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in loaded.items()
    ):
        raise BundleError(
            f"{path.name} holds something else than a table of tensors. "
            "Give the state dict alone, as the authors publish it."
        )
    return dict(loaded)
