"""Where a stage is trained: Lightning Fabric over what torchrun has started, and batches for it.

    torchrun --nproc-per-node=2 -m distillation.prompt_stage RECIPE DATA_DIR RUN_DIR

More processes, on one machine or several, are torchrun's business; each has a batch of its own and
the gradients are averaged.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from distillation.configs import EngineConfig

logger = logging.getLogger(__name__)


def launch(config: EngineConfig) -> Fabric:
    """Fabric over the GPUs, or the CPU processes, that torchrun has started; over one without it.

    Which parameters a step uses depends on its prompts, so DDP has to look for the unused ones.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=local,
        num_nodes=world // local,
        strategy=DDPStrategy(find_unused_parameters=True) if world > 1 else "auto",
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
    )
    fabric.launch()
    if world > 1 and fabric.is_global_zero:
        logger.info("%d processes on %d machines", fabric.world_size, world // local)
    return fabric


class SealedBatch:
    """A batch that Fabric leaves alone: it would turn coordinates and targets to bf16, too."""

    def __init__(self, batch: Any) -> None:
        """Hold any batch."""
        self.batch = batch


def to_device(batch: Any, device: torch.device) -> Any:
    """The same dataclass with its tensors on the device."""
    tensors = {
        f.name: value.to(device, non_blocking=True)
        for f in dataclasses.fields(batch)
        if torch.is_tensor(value := getattr(batch, f.name))
    }
    return dataclasses.replace(batch, **tensors)
