"""From a training on a project's labels to the bundle that wants the incumbent's place."""

from __future__ import annotations

import json
from pathlib import Path

from distillation.project_set import ProjectSet
from distillation.run_folder import WEIGHTS
from edgesam_core.bundle import Bundle
from edgesam_core.errors import RunError
from edgesam_core.export.write_bundle import write_bundle
from edgesam_core.nn.checkpoint import read_checkpoint
from edgesam_core.nn.granularity import is_granularity_key


def export_challenger(base: Path, run: Path, train_set: ProjectSet, steps: int) -> None:
    """The averaged weights as a bundle that is run as its base is.

    Raises:
        RunError: The weights are not finite.
        BundleError: The graphs answer otherwise than PyTorch.
    """
    manifest = Bundle.open(base).manifest
    weights = read_checkpoint(run / "training" / WEIGHTS)
    if not all(bool(t.isfinite().all()) for t in weights.values() if t.is_floating_point()):
        raise RunError(
            "The training diverged: its weights are no longer numbers. The model that serves stays."
        )
    base_weights = read_checkpoint(base / "weights.safetensors")
    weights |= {key: t for key, t in base_weights.items() if is_granularity_key(key)}
    write_bundle(
        weights,
        run / "challenger",
        name=manifest.name,
        input_size=manifest.input_size,
        upsample="bilinear" if manifest.upsample == "bilinear" else "bicubic",
        draws_prompts=manifest.draws_prompts,
        refines_with_mask_input=manifest.refines_with_mask_input,
        trusts_iou_prediction=manifest.trusts_iou_prediction,
        leaves_out_padding=manifest.leaves_out_padding,
        licence=manifest.licence,
        origin=_origin(manifest.name, manifest.version, run / "snapshot", train_set, steps),
        overwrite=True,
    )


def _origin(name: str, version: str, snapshot: Path, train_set: ProjectSet, steps: int) -> str:
    """Where a challenger comes from, as a sentence."""
    said = json.loads((snapshot / "snapshot.json").read_text())
    return (
        f"Trained from {name} {version} in {steps} steps on {train_set.region_count} regions of "
        f"{len(set(train_set.task_of.values()))} tasks of project {said.get('project')}, as in its "
        f"snapshot {str(said.get('hash'))[:12]}."
    )
