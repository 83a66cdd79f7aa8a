"""timm, made importable also where torchvision was built for another torch."""

from __future__ import annotations

import torch


def declare_missing_torchvision_operators() -> None:
    """Let timm import where torchvision was built for CUDA and torch for the CPU.

    timm imports torchvision, which then looks for two operators that only its own binary defines.
    They may be declared only after torchvision itself has failed: beside a healthy torchvision the
    second registration ends the process.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
