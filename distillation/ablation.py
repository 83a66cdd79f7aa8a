"""The paper's questions, asked again on small data: one command, a table and a plot.

    python -m distillation.ablation distillation/recipes/ablation.yaml DATA_DIR OUT [--seeds 0]

What each part of the recipe is worth, for students that differ in nothing else: every one begins
with the encoder-only stage, takes over its teacher's decoder, and is asked about photos that nobody
was trained on. A trial is a student with a seed; one that is finished is not trained again, one
that was stopped goes on, so the command can be given as often as it takes, and ``--seeds`` can
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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from distillation.annotated_images import annotated_images
from distillation.candidate_rules import BY_PREDICTION
from distillation.click_rounds import Answer
from distillation.command import add_threads, run_command
from distillation.configs import (
    EncoderStageConfig,
    EngineConfig,
    GranularityStageConfig,
    Phase,
    PromptStageConfig,
)
from distillation.encoder_stage import EncoderStage
from distillation.engine import Stage, fit
from distillation.granularity_stage import GranularityStage
from distillation.measuring import BY_RULE, EvaluationConfig, evaluate
from distillation.metrics import mean_ious
from distillation.prompt_stage import PromptStage
from distillation.run_folder import WEIGHTS, write_whole
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
from edgesam_core.nn.granularity import build_granularity_prior

logger = logging.getLogger(__name__)

BY_IOU = "click by IoU"
"""A click whose mask of four is chosen by the predicted IoU, and not by stability as in "click"."""

COLUMNS = ("box", "click", "click+1", "click+2", BY_IOU)


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """What is compared, and on what."""

    teacher: str
    """Checkpoint or bundle; the best at hand."""
    seeds: tuple[int, ...]
    """Each is a repetition of everything."""
    encoder: EncoderStageConfig
    """The first stage of every student; its ``steps`` are those of the shorter one."""
    prompts: PromptStageConfig
    """The full second stage; the trials leave parts of it out."""
    granularity: GranularityStageConfig
    """The third."""
    iou_weight: float
    """Of the IoU token's loss, in the trial that has one."""
    measured_sets: tuple[str, ...]
    """Sets of ``research_only``; even image ids are asked about."""
    measured_images: int
    """Of each set, at most."""


@dataclass(frozen=True)
class Trial:
    """A kind of student."""

    name: str
    begins_as: str | None
    """Another trial, whose student it begins as."""
    question: str
    """For the table: what it is there to show, beside which one."""


TEACHER = "the teacher"

TRIALS = (
    Trial(TEACHER, None, "what all learn from; no training"),
    Trial("encoder only", None, "where all begin"),
    Trial("encoder only, longer", None, "is it the steps?"),
    Trial("prompts in the loop", "encoder only", "does the loop help, without corrections?"),
    Trial("with corrective clicks", "encoder only", "do corrections help?"),
    Trial("decoder frozen", "encoder only", "must the decoder learn?"),
    Trial("decoder by LoRA", "encoder only", "is a little enough?"),
    Trial("IoU token distilled", "encoder only", "is its prediction worth following?"),
    Trial("granularity prior, best", "with corrective clicks", "does a proposed box help a click?"),
    Trial("granularity prior, mean", "granularity prior, best", "by the paper's rule?"),
)


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
        self.config, self.data, self.out = config, data, out
        self.photos = link_photos(data, config.prompts.set_weights, out / "photos")
        teacher = load_teacher(config.teacher, input_size=config.prompts.teacher_input_size)
        if not isinstance(teacher, NetworkTeacher):
            raise RunError("teacher: masks have no embeddings. Name a checkpoint or a bundle.")
        self.teacher_name, self.teacher_network = teacher.name, teacher.network
        self.embeddings = embed(teacher, self.photos, out / "embeddings").folder

    def run(self, seeds: Sequence[int]) -> None:
        """Train and measure whatever is not finished."""
        for seed in seeds:
            for trial in TRIALS:
                folder = self.folder(trial.name, seed)
                if trial.name == TEACHER and not self._measures_teacher(seed):
                    continue
                if not (folder / "scores.json").exists():
                    started = time.process_time()
                    self.train(trial, seed)
                    scores = self.measure(trial, seed)
                    row = {"trial": trial.name, "seed": seed, "miou_percent": scores}
                    row["cpu_minutes"] = round((time.process_time() - started) / 60, 1)
                    folder.mkdir(parents=True, exist_ok=True)
                    write_whole(folder / "scores.json", json.dumps(row).encode())
                    logger.info("%s", row)

    def _measures_teacher(self, seed: int) -> bool:
        """Once, and only one that takes the student's size."""
        return seed == self.config.seeds[0] and isinstance(self.teacher_network, EdgeSam)

    def folder(self, name: str, seed: int) -> Path:
        """Where a trial lies."""
        return self.out / f"seed_{seed}" / name.replace(",", "").replace(" ", "_")

    def train(self, trial: Trial, seed: int) -> None:
        """Bring a trial's student to the end of its recipe."""
        if built := self.build(trial, seed):
            stage, config = built
            fit(stage, config, self.folder(trial.name, seed), from_weights=True)

    def build(self, trial: Trial, seed: int) -> tuple[Stage, EngineConfig] | None:
        """The stage that a trial adds, and its recipe; None for one that only asks otherwise."""
        config = self.config
        if trial.name == TEACHER:
            return None
        before = self.folder(trial.begins_as, seed) / WEIGHTS if trial.begins_as else None
        if trial.begins_as is None:
            steps = config.encoder.steps
            if trial.name == "encoder only, longer":
                steps += config.prompts.steps
            encoder = replace(config.encoder, steps=steps, seed=seed, teacher=self.teacher_name)
            decoder = Path(config.teacher)
            return EncoderStage(encoder, self.photos, self.embeddings, decoder=decoder), encoder
        assert before is not None
        if trial.name == "granularity prior, best":
            granularity = replace(config.granularity, seed=seed)
            return GranularityStage(granularity, before, self.data), granularity
        if trial.name == "granularity prior, mean":
            return None
        prompts = replace(config.prompts, teacher=config.teacher, seed=seed)
        if trial.name == "prompts in the loop":
            phases = tuple(replace(phase, rounds=1) for phase in prompts.phases)
            prompts = replace(prompts, phases=phases)
        if trial.name == "IoU token distilled":
            prompts = replace(prompts, iou_weight=config.iou_weight)
        if trial.name == "decoder frozen":
            prompts = replace(prompts, decoder="frozen")
        if trial.name == "decoder by LoRA":
            prompts = replace(prompts, decoder="lora")
        return PromptStage(prompts, self.data, init=before), prompts

    def measure(self, trial: Trial, seed: int) -> dict[str, float]:
        """Column -> mean IoU in per cent over all photos that are asked about."""
        name = trial.name
        rule: MergeRule | None = None
        if name.startswith("granularity"):
            rule = "mean" if name.endswith("mean") else "best"
            name = "granularity prior, best"
        size, prior = self.config.encoder.size, None
        if name == TEACHER:
            student = self.teacher_network
        else:
            weights = read_checkpoint(self.folder(name, seed) / WEIGHTS)
            prior = build_granularity_prior(weights)
            student = model_from(weights, draws_prompts=self.config.prompts.draws_prompts)
        if prior is not None:
            prior.eval()
        assert isinstance(student, EdgeSam)
        segmenter = TorchSegmenter(student, size, prior)
        answerer = _WithPrior(segmenter, rule) if rule else segmenter
        asked = EvaluationConfig(starts=("box", "click"), candidate_rules=True)
        scores = []
        for set_name in self.config.measured_sets:
            folder = self.data / "research_only" / set_name
            limit = self.config.measured_images
            images = annotated_images(folder, None, half="even", per_image=4, limit=limit)
            scores += evaluate(answerer, images, config=asked)
        means = mean_ious(scores)
        measured = {column: means["model"][column] for column in COLUMNS if column != BY_IOU}
        if not rule:
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


def link_photos(data: Path, set_names: Sequence[str] | dict[str, float], folder: Path) -> Path:
    """One folder of links to the training photos of some sets, for the encoder-only stage.

    Image ids divisible by ten are held back, as everywhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for set_name in set_names:
        source = data / "open" / set_name
        for record in json.loads((source / "annotations.json").read_text())["images"]:
            link = folder / f"{set_name}_{Path(record['file_name']).name}"
            if record["id"] % 10 and not link.is_symlink():
                link.symlink_to((source / "images" / record["file_name"]).resolve())
    return folder


def load_ablation(path: Path) -> AblationConfig:
    """Read a recipe.

    Raises:
        RunError: A key is unknown or missing.
    """
    try:
        fields: dict[str, Any] = yaml.safe_load(path.read_text())
        prompts = fields.pop("prompts")
        phases = tuple(Phase(**phase) for phase in prompts.pop("phases"))
        return AblationConfig(
            encoder=EncoderStageConfig(teacher=fields["teacher"], **fields.pop("encoder")),
            prompts=PromptStageConfig(phases=phases, teacher=fields["teacher"], **prompts),
            granularity=GranularityStageConfig(**fields.pop("granularity")),
            seeds=tuple(fields.pop("seeds")),
            measured_sets=tuple(fields.pop("measured_sets")),
            **fields,
        )
    except (OSError, KeyError, TypeError, yaml.YAMLError) as exc:
        raise RunError(f"{path.name}: {exc!r}. Compare it with distillation/ablation.py.") from exc


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The finished trials of a folder."""
    return [json.loads(path.read_text()) for path in sorted(out.glob("seed_*/*/scores.json"))]


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, a row for every trial."""
    lines = [
        f"| student | {' | '.join(COLUMNS)} | seeds | CPU min | asks |",
        f"|---|{'---:|' * (len(COLUMNS) + 2)}---|",
    ]
    for trial in TRIALS:
        own = [row for row in rows if row["trial"] == trial.name]
        if own:
            cells = [_spread(_measured(own, column)) for column in COLUMNS]
            minutes = np.mean([row["cpu_minutes"] for row in own])
            lines.append(
                f"| {trial.name} | {' | '.join(cells)} | {len(own)} | {minutes:.0f} | "
                f"{trial.question} |"
            )
    return "\n".join(lines) + "\n"


def _measured(rows: Sequence[dict[str, Any]], column: str) -> list[float]:
    """A column over seeds; a trial that proposes boxes has no rule to choose a mask by."""
    return [row["miou_percent"][column] for row in rows if column in row["miou_percent"]]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A panel for every column, a line for every trial, a dot for every seed, a bar at the mean."""
    trials = [trial for trial in TRIALS if any(row["trial"] == trial.name for row in rows)]
    figure = Figure(figsize=(13, 0.8 + 0.42 * len(trials)), layout="constrained", dpi=120)
    panels = figure.subplots(1, len(COLUMNS), sharey=True)
    for axes, column in zip(panels, COLUMNS, strict=True):
        for y, trial in enumerate(trials):
            if own := _measured([row for row in rows if row["trial"] == trial.name], column):
                axes.plot(own, [y] * len(own), "o", color="#0072B2", alpha=0.6, markersize=5)
                axes.plot([np.mean(own)] * 2, [y - 0.3, y + 0.3], color="#D55E00", linewidth=2)
        axes.set_title(column, fontsize=10)
        axes.set_xlabel("mIoU, %")
        axes.grid(axis="x", color="#dddddd")
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(range(len(trials)), [trial.name for trial in trials])
    panels[0].invert_yaxis()
    return figure


def save_summary(rows: Sequence[dict[str, Any]], out: Path) -> str:
    """Write the table, the numbers and the plot; returns the table."""
    table = to_markdown(rows)
    write_whole(out / "ablation.md", table.encode())
    write_whole(out / "ablation.json", json.dumps(list(rows), indent=1).encode())
    plot(rows).savefig(out / "ablation.png")
    return table


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
