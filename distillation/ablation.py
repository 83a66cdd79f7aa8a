"""The paper's questions, asked again on small data: one command, a table and a plot.

    python -m distillation.ablation distillation/recipes/ablation.yaml DATA_DIR OUT [--seeds 0]

What each part of the recipe is worth, for students that differ in nothing else: every one begins
with the encoder-only stage, takes over its teacher's decoder, and is asked about photos that nobody
was trained on. ``ablation_trials.py`` lists them. What is finished for a seed is not trained again,
what was stopped goes on, so the command can be given as often as it takes, and ``--seeds`` can
share the work between machines. ``OUT`` gets ``ablation.md``, ``ablation.json``, ``ablation.png``.

Paper: EdgeSAM (arXiv 2312.06660), table 5. Its control for "more training" is kept: the
encoder-only stage for as many steps more as the prompt loop has.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from distillation.ablation_report import BY_IOU, COLUMNS, read_rows, save_summary
from distillation.ablation_trials import (
    TEACHER,
    TRIALS,
    AblationConfig,
    Recipe,
    Trial,
    load_ablation,
)
from distillation.annotated_images import annotated_images
from distillation.candidate_rules import BY_PREDICTION
from distillation.click_rounds import Answer
from distillation.coco import find_sets, load_set, refuse
from distillation.command import add_threads, run_command
from distillation.configs import EncoderStageConfig, PromptStageConfig
from distillation.encoder_stage import EncoderStage
from distillation.engine import Stage, fit
from distillation.granularity_stage import GranularityStage
from distillation.measuring import BY_RULE, MeasuringConfig, score_images
from distillation.metrics import mean_ious
from distillation.prompt_stage import PromptStage
from distillation.run_folder import WEIGHTS, make_folder, write_whole
from distillation.teacher_embeddings import embed
from distillation.teachers import NetworkTeacher, load_teacher
from distillation.torch_segmenter import TorchSegmenter
from edgesam_core.arrays import ImageRGB
from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.errors import RunError
from edgesam_core.granularity import MergeRule
from edgesam_core.nn.checkpoint import read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.family import model_from
from edgesam_core.nn.granularity import GranularityPrior, build_granularity_prior

logger = logging.getLogger(__name__)


class Ablation:
    """All trials of one recipe in one folder."""

    def __init__(self, config: AblationConfig, data: Path, out: Path) -> None:
        """Prepare the photos and the teacher's embeddings, unless they are there.

        Args:
            config: The recipe.
            data: Folder with ``open/`` and ``research_only/``.
            out: Where trials and results lie.

        Raises:
            RunError: What is wrong with data or teacher, by file and reason.
        """
        self.data, self.out = data, out
        self.photos = link_photos(data, config.prompts.set_weights, out / "photos")
        teacher = load_teacher(config.teacher, input_size=config.prompts.teacher_input_size)
        if not isinstance(teacher, NetworkTeacher):
            raise RunError("teacher: masks have no embeddings. Name a checkpoint or a bundle.")
        self.teacher_network = teacher.network
        # The encoder's recipe names the teacher as its stored embeddings do.
        self.config = replace(config, encoder=replace(config.encoder, teacher=teacher.name))
        self.embeddings = embed(teacher, self.photos, out / "embeddings").folder

    def run(self, seeds: Sequence[int]) -> None:
        """Train and measure whatever is not finished."""
        for seed in seeds:
            for trial in self.trials(seed):
                folder = self.folder(trial.name, seed)
                if not (folder / "scores.json").exists():
                    started = time.process_time()
                    self.train(trial, seed)
                    scores = self.measure(trial, seed)
                    row = {"trial": trial.name, "seed": seed, "miou_percent": scores}
                    row["cpu_minutes"] = round((time.process_time() - started) / 60, 1)
                    make_folder(folder)
                    write_whole(folder / "scores.json", json.dumps(row).encode())
                    logger.info("%s", row)

    def trials(self, seed: int) -> list[Trial]:
        """Those of a seed; the teacher once, and only one that takes the student's size."""
        with_teacher = seed == self.config.seeds[0] and isinstance(self.teacher_network, EdgeSam)
        return [trial for trial in TRIALS if trial is not TEACHER or with_teacher]

    def folder(self, name: str, seed: int) -> Path:
        """Where a trial lies."""
        return self.out / f"seed_{seed}" / name.replace(",", "").replace(" ", "_")

    def train(self, trial: Trial, seed: int) -> None:
        """Bring a trial's student to the end of its recipe, if it has one."""
        if trial.recipe is not None:
            recipe = replace(trial.recipe(self.config), seed=seed)
            before = self.folder(trial.begins_as, seed) / WEIGHTS if trial.begins_as else None
            stage = self.stage(recipe, before)
            fit(stage, recipe, self.folder(trial.name, seed), from_weights=True)

    def stage(self, recipe: Recipe, before: Path | None) -> Stage:
        """What is trained by a recipe; ``before``: the weights it begins with."""
        if isinstance(recipe, EncoderStageConfig):
            decoder = Path(self.config.teacher)
            return EncoderStage(recipe, self.photos, self.embeddings, decoder=decoder)
        assert before is not None
        if isinstance(recipe, PromptStageConfig):
            return PromptStage(recipe, self.data, init=before)
        return GranularityStage(recipe, before, self.data)

    def student(self, trial: Trial, seed: int) -> tuple[EdgeSam, GranularityPrior | None]:
        """Who is asked, and the prior on top; one that was not trained is the one it begins as."""
        name = trial.name if trial.recipe else trial.begins_as
        if name is None:
            assert isinstance(self.teacher_network, EdgeSam)
            return self.teacher_network, None
        weights = read_checkpoint(self.folder(name, seed) / WEIGHTS)
        prior = build_granularity_prior(weights)
        student = model_from(weights, draws_prompts=self.config.prompts.draws_prompts)
        assert isinstance(student, EdgeSam)
        return student, prior.eval() if prior is not None else None

    def measure(self, trial: Trial, seed: int) -> dict[str, float]:
        """Column -> mean IoU in per cent over all photos that are asked about."""
        student, prior = self.student(trial, seed)
        segmenter = TorchSegmenter(student, self.config.encoder.size, prior)
        rule = trial.merge_rule
        answerer = _WithPrior(segmenter, rule) if rule else segmenter
        asked = MeasuringConfig(starts=("box", "click"), candidate_rules=True)
        scores = []
        for set_name in self.config.measured_sets:
            folder = self.data / "research_only" / set_name
            limit = self.config.measured_images
            images = annotated_images(folder, None, half="even", per_image=4, limit=limit)
            scores += score_images(answerer, images, config=asked)
        means = mean_ious(scores)
        measured = {column: means["model"][column] for column in COLUMNS if column != BY_IOU}
        if rule is None:
            measured[BY_IOU] = means[BY_PREDICTION]["click" + BY_RULE]
        return measured


class _WithPrior:
    """A segmenter that lets proposed boxes join single clicks."""

    def __init__(self, segmenter: TorchSegmenter, rule: MergeRule) -> None:
        self._segmenter, self._rule = segmenter, rule

    def embed(self, image: ImageRGB) -> Embedding:
        return self._segmenter.embed(image, with_proposals=True)

    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> Sequence[Answer]:
        return self._segmenter.segment(embedding, prompts, merge_rule=self._rule)


def link_photos(data: Path, set_names: Iterable[str], folder: Path) -> Path:
    """One folder of links to the training photos of some sets, for the encoder-only stage.

    Image ids divisible by ten are held back, as everywhere.

    Raises:
        RunError: A set is missing or its annotations are wrong, or the folder cannot be made.
    """
    make_folder(folder)
    for set_name in set_names:
        ((_, file, images_dir),) = find_sets(data / "open" / set_name)
        annotated = load_set(set_name, file, images_dir)
        refuse(annotated.findings)
        for image in annotated.images:
            link = folder / f"{set_name}_{image.path.name}"
            if image.image_id % 10 and not link.is_symlink():
                link.symlink_to(image.path.resolve())
    return folder


def main() -> int:
    """The command line; 0 when all that was asked for is finished."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", help="only these; all if not given")
    add_threads(parser)
    args = parser.parse_args()

    def run() -> None:
        config = load_ablation(args.recipe)
        Ablation(config, args.data, args.out).run(args.seeds or config.seeds)
        print(save_summary(read_rows(args.out), args.out))

    return run_command(run, threads=args.threads)


if __name__ == "__main__":
    sys.exit(main())
