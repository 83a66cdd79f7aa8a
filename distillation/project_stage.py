"""Training on a project's own labels: from a snapshot and the base bundle to a challenger.

    python -m distillation.project_stage distillation/recipes/project.yaml RUN --base models/default

``RUN/snapshot`` holds what the annotators made; ``RUN/training`` becomes a run folder like that of
every stage, ``RUN/challenger`` a bundle. The same command goes on where it was stopped; it ends
with 0 only when the challenger is there.

It is stage 2 (prompt_stage.py) with two differences. The trunk is frozen, so that each view of an
image needs it once (feature_cache.py), and neck, prompt encoder and mask decoder learn. And beside
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
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from distillation.batches import Batch
from distillation.challenger import export_challenger
from distillation.command import add_threads, run_command
from distillation.engine import Stage, fit, seed_step
from distillation.feature_cache import FeatureCache
from distillation.project_batches import ProjectBatch, ProjectScenes, ProjectStageConfig
from distillation.project_set import ProjectSet, load_project_set, read_images
from distillation.project_teacher import ProjectTeacher, embed_features
from distillation.prompt_stage import PromptStage
from distillation.recipe_files import load_recipe
from distillation.run_folder import make_folder, write_whole
from edgesam_core.bundle import Bundle
from edgesam_core.errors import RunError
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.family import read_model

logger = logging.getLogger(__name__)

TIMED_STEPS = 3
"""Steps that are timed to see how many fit into the minutes."""

FEWEST_STEPS = 20
"""Fewer are not worth a challenger; a smaller budget is refused."""

PLAN = "plan.json"


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
        network, leaves_out_padding = (
            read_model(base),
            Bundle.open(base).manifest.leaves_out_padding,
        )
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
        self.project_scenes = ProjectScenes(
            self.config, images, cache, leaves_out_padding=leaves_out_padding
        )
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
        scenes = ProjectScenes(
            config, images, cache, leaves_out_padding=self.project_scenes.leaves_out_padding
        )
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
    make_folder(training)
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
