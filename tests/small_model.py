"""The default model, small enough to be trained and asked in a test."""

from __future__ import annotations

from pathlib import Path

from edgesam_core.export.write_bundle import write_bundle
from edgesam_core.nn.checkpoint import read_checkpoint
from tests.parts import REPOSITORY


def write_small_model(folder: Path) -> Path:
    """The default model at a ninth of its pixels: it still knows what an object is."""
    return write_bundle(
        read_checkpoint(REPOSITORY / "models" / "default" / "weights.safetensors"),
        folder,
        name="default",
        input_size=128,
        draws_prompts=True,
        refines_with_mask_input=True,
        licence="Apache-2.0",
    )
