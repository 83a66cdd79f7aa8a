"""Training on a project's own labels: from a snapshot and the base bundle to a challenger.

    python -m distillation.project_stage distillation/recipes/project.yaml RUN --base models/default

``RUN/snapshot`` holds what the annotators made; ``RUN/training`` becomes a run folder like that of
every stage, ``RUN/challenger`` a bundle. The same command goes on where it was stopped; it ends
with 0 only when the challenger is there.

It is stage 2 (prompt_stage.py) with two differences. The trunk is frozen, so that each view of an
image needs it once (project_data.py), and neck, prompt encoder and mask decoder learn. And beside
the annotators' masks there are two reminders of what the base model could do: drawn scenes, and
prompts outside everything annotated, which the frozen base answers.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from distillation.batches import Batch
from distillation.command import add_threads, run_command
from distillation.configs import load_recipe
from distillation.engine import Stage, fit, seed_step
from distillation.project_data import (
    FeatureCache,
    ProjectBatch,
    ProjectScenes,
    ProjectSet,
    ProjectStageConfig,
    load_project_set,
    read_images,
)
from distillation.prompt_stage import PromptStage
from distillation.run_folder import WEIGHTS, open_run, write_whole
from distillation.teachers import Answer, NetworkTeacher, Prompts
from edgesam_core.bundle import Bundle
from edgesam_core.errors import RunError
from edgesam_core.export.write_bundle import write_bundle
from edgesam_core.nn.checkpoint import read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.family import read_model
from edgesam_core.nn.granularity import is_granularity_key

logger = logging.getLogger(__name__)

TIMED_STEPS = 3
"""Steps that are timed to see how many fit into the minutes."""

FEWEST_STEPS = 20
"""Fewer are not worth a challenger; a smaller budget is refused."""

PLAN = "plan.json"


class ProjectTeacher(torch.nn.Module):
    """The annotators, and the frozen base model where they said nothing."""

    def __init__(self, base: EdgeSam) -> None:
        """Freeze the base.

        Args:
            base: Its parameters are frozen in place.
        """
        super().__init__()
        self.base = NetworkTeacher(base, name="base", input_size=base.input_size or 0)

    def look(self, batch: Batch) -> _ProjectLook:
        """Embed the images again as the base does, if anything is to be asked of it."""
        asked = cast("ProjectBatch", batch)
        prompts_per_image = batch.points.shape[1]
        rows = asked.from_base.flatten().nonzero()[:, 0]
        embedding = None
        if len(rows):
            with torch.no_grad():
                of_images = embed_features(cast("EdgeSam", self.base.network), asked)
            embedding = of_images[rows // prompts_per_image]
        targets = batch.targets.flatten(0, 1)[:, None].float() / 255
        return _ProjectLook(self.base.network, targets, rows, embedding)


@dataclass(frozen=True)
class _ProjectLook:
    base: Any
    targets: torch.Tensor
    """[B, 1, S/4, S/4]."""
    rows: torch.Tensor
    """Which of the B prompts the base answers."""
    embedding: torch.Tensor | None
    """[len(rows), 256, S/16, S/16]."""

    @torch.no_grad()
    def answer(self, prompts: Prompts) -> Answer:
        """The annotators' masks; the base's mask 0 elsewhere."""
        compared = torch.zeros(len(self.targets), dtype=torch.int64, device=self.targets.device)
        if self.embedding is None:
            return Answer(self.targets, compared, None)
        asked = {k: v[self.rows] for k, v in vars(prompts).items() if v is not None}
        asked.pop("mask_input", None)  # the student's own, which the base did not answer
        logits, _ = self.base.decode(self.embedding, **asked, num_multimask_outputs=1)
        targets = self.targets.clone()
        targets[self.rows] = (logits > 0).to(targets.dtype)
        return Answer(targets, compared, None)


def embed_features(student: EdgeSam, batch: ProjectBatch) -> torch.Tensor:
    """What follows the trunk: [I, 256, S/16, S/16]."""
    device = next(student.parameters()).device
    stage2, stage3 = (x.to(device).float() for x in (batch.stage2, batch.stage3))
    return student.image_encoder.embed(stage2, stage3)


class ProjectStage(PromptStage):
    """The base's neck, prompt encoder and mask decoder, and a project's labels."""

    config: ProjectStageConfig

    def __init__(
        self, config: ProjectStageConfig, base: Path, snapshot: Path, features: Path
    ) -> None:
        """Load everything that the run needs, so that what is wrong shows before the first step.

        Args:
            config: The recipe.
            base: Bundle that every run starts from.
            snapshot: Folder with ``train.json``, ``held_out.json`` and ``images/``.
            features: Folder for what the frozen trunk answers.

        Raises:
            RunError: There is nothing to learn from, or an image or mask cannot be read.
            BundleError: The base has no weights or is damaged.
        """
        Stage.__init__(self)
        network = read_model(base)
        if not isinstance(network, EdgeSam):
            raise RunError("Only an EdgeSAM can learn from a project. Choose another base model.")
        size = network.input_size or 1024
        phase = dataclasses.replace(config.phases[0], size=size)
        self.config = dataclasses.replace(config, phases=(phase,))
        self.steps = self.config.steps
        self.student = copy.deepcopy(network)
        cast("Any", self.student).to(memory_format=torch.channels_last)
        self.student.image_encoder.backbone.requires_grad_(False)
        self.teacher = ProjectTeacher(network)
        self.train_set = load_project_set(snapshot / "train.json", snapshot / "images")
        cache = FeatureCache(network.image_encoder.backbone, features)
        images = read_images(
            self.train_set, max_side=config.max_side, most=config.most_images, seed=config.seed
        )
        self.project_scenes = ProjectScenes(self.config, images, cache)
        self.held_back = self._held_back(
            load_project_set(snapshot / "held_out.json", snapshot / "images"), cache
        )

    def embed(self, student: EdgeSam, batch: Batch) -> torch.Tensor:
        """From what the frozen trunk answered."""
        return embed_features(student, cast("ProjectBatch", batch))

    def batches(self, first_step: int, rank: int, world: int) -> Iterator[ProjectBatch]:
        """Drawn beside the training, in the same process: it takes a hundredth of the time."""
        for step in range(first_step, self.steps):
            yield self.project_scenes.draw_step(step, rank)

    def _held_back(self, held_out: ProjectSet, cache: FeatureCache) -> list[Any]:
        """A look at some tasks of the gate while training; nothing is chosen by it."""
        images = read_images(held_out, max_side=self.config.max_side, most=self.config.held_back)
        if not images:
            return []
        config = dataclasses.replace(self.config, outside_share=0.0, stored_share=0.0, box_jitter=0)
        scenes = ProjectScenes(config, images, cache)
        rng = np.random.default_rng(0)
        asked = [a for image in images if (a := scenes.ask_view(rng, image, 0)) is not None]
        return [scenes.assemble(asked[i : i + 4]) for i in range(0, len(asked), 4)]


def plan_steps(
    stage: ProjectStage, training: Path, *, minutes: float | None, steps: int | None
) -> int:
    """How many steps this run has: decided once, then read from ``plan.json``.

    Some steps are timed in this process's own time, so that a pause or a busy machine does not
    shorten the run.

    Args:
        stage: Not changed.
        training: The run folder.
        minutes: Of one core, for training alone; None: as long as the recipe says.
        steps: At most so many.

    Raises:
        RunError: So few steps fit that there is no use.
    """
    path = training / PLAN
    if path.exists():
        return int(json.loads(path.read_text())["steps"])
    most = min(stage.steps, steps or stage.steps)
    seconds = None
    if minutes is not None:
        seconds = seconds_per_step(stage)
        fitting = int(60 * minutes / seconds)
        if fitting < min(FEWEST_STEPS, most):
            raise RunError(
                f"Only {fitting} steps fit into {minutes:g} minutes ({seconds:.1f} s each). "
                "Give the training more time."
            )
        most = min(most, fitting)
    write_whole(path, json.dumps({"steps": most, "seconds_per_step": seconds}).encode())
    return most


def seconds_per_step(stage: ProjectStage) -> float:
    """Of one core; the median of some steps whose gradients are thrown away."""
    taken = []
    for step in range(TIMED_STEPS):
        batch = stage.project_scenes.draw_step(step)
        seed_step(stage.config.seed, step, 0)
        started = time.process_time()
        precision = stage.config.precision == "bf16"
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            loss, _ = stage(batch)
        loss.backward()
        taken.append(time.process_time() - started)
    stage.zero_grad(set_to_none=True)
    return float(np.median(taken))


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


def train(
    recipe: Path, run: Path, base: Path, *, minutes: float | None = None, steps: int | None = None
) -> None:
    """All of the command: train, then export; what is done already is not done again.

    Raises:
        RunError: What stopped the run; the next call goes on from the last checkpoint.
        BundleError: Of the base, or the challenger's graphs.
    """
    if (run / "challenger" / "manifest.json").exists():
        Bundle.open(run / "challenger")
        return
    config = load_recipe(recipe, ProjectStageConfig)
    training = run / "training"
    open_run(training)
    stage = ProjectStage(config, base, run / "snapshot", training / "features")
    stage.steps = plan_steps(stage, training, minutes=minutes, steps=steps)
    config = dataclasses.replace(stage.config, decay_steps=max(1, stage.steps // 2))
    fit(stage, config, training, from_weights=True)
    export_challenger(base, run, stage.train_set, stage.steps)
    shutil.rmtree(training / "features", ignore_errors=True)  # hundreds of MB; made again if needed


def main() -> int:
    """The command line; 0 when the challenger is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run", type=Path, help="holds snapshot/")
    parser.add_argument("--base", type=Path, required=True, help="bundle to start from")
    parser.add_argument("--minutes", type=float, help="of one core, for the training alone")
    parser.add_argument("--steps", type=int, help="at most so many")
    add_threads(parser)
    args = parser.parse_args()
    return run_command(
        lambda: train(args.recipe, args.run, args.base, minutes=args.minutes, steps=args.steps),
        threads=args.threads,
    )


if __name__ == "__main__":
    sys.exit(main())
