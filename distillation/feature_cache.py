"""What the frozen trunk answered, kept in files: a training on one core asks it once for a view."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distillation.network_input import normalise
from distillation.run_folder import write_whole
from edgesam_core.nn.repvit import stage_outputs


class FeatureCache:
    """The trunk's last two stages for every view, computed once and kept in files as fp16."""

    def __init__(self, backbone: nn.Module, folder: Path) -> None:
        """Take a frozen trunk and the folder of its answers; a run that goes on finds them there.

        Args:
            backbone: In evaluation mode.
            folder: One file per view; emptied by nobody but the run's owner.
        """
        self._backbone, self._folder = backbone, folder
        folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def get(self, key: str, image: Callable[[], np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """stage2 [C2, H/16, W/16] and stage3 [C3, H/32, W/32], both fp16.

        Args:
            key: Name of the view.
            image: Makes its pixels, [H, W, 3] uint8, if they are needed.
        """
        from safetensors.torch import load_file, save

        path = self._folder / f"{key}.safetensors"
        if path.exists():
            try:
                kept = load_file(path)
                return kept["stage2"], kept["stage3"]
            except Exception:  # torn by a power cut: of whatever kind, it is computed again
                path.unlink(missing_ok=True)
        pixels = torch.from_numpy(np.ascontiguousarray(image().transpose(2, 0, 1)))[None]
        device = next(self._backbone.parameters()).device
        _, _, stage2, stage3 = stage_outputs(self._backbone, normalise(pixels.to(device)))
        kept = {
            "stage2": stage2[0].half().contiguous().cpu(),
            "stage3": stage3[0].half().contiguous().cpu(),
        }
        write_whole(path, save(kept))
        return kept["stage2"], kept["stage3"]
