"""timm, made importable also where torchvision was built for another torch."""

from __future__ import annotations

from typing import Any

import torch


def import_timm() -> Any:
    """timm, also where torchvision was built for CUDA and torch for the CPU.

    timm imports torchvision, which then looks for two operators that only its own binary defines.
    They may be declared only after torchvision itself has failed: beside a healthy torchvision the
    second registration ends the process.

    Raises:
        ImportError: timm or torchvision is not installed.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
    import timm

    return timm
