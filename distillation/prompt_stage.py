"""Stage 2, prompts in the loop: click or box, then a click wherever the student is wrong.

    python -m distillation.prompt_stage distillation/recipes/default_1.yaml DATA_DIR RUN_DIR
    make train RECIPE=distillation/recipes/default_1.yaml DATA=DATA_DIR RUN=RUN_DIR
    torchrun --nproc-per-node=2 -m distillation.prompt_stage RECIPE DATA_DIR RUN_DIR

The same command goes on with a run that was stopped. One step draws a batch of crops with several
prompts each, decodes all of them in one call, and then again with one corrective click more, drawn
where the student disagrees with its teacher: a network of SAM's family, or the masks themselves.
Read ``PromptStage.forward`` first.

Paper: EdgeSAM (arXiv 2312.06660), section 3.2 and algorithm 1. Where this differs from its code: a
click lies in the middle of its cell and not in its corner, fewer wrong cells draw one
(prompt_sampling.py), the number of rounds is drawn for each step, and earlier logits are fed back
in some of them. With masks as the teacher the loss is another, too (losses.py).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F

from distillation.batches import Batch, TrainingScenes, held_back_batches
from distillation.command import add_threads, naming, run_command
from distillation.configs import PromptStageConfig
from distillation.engine import Evaluation, Stage, StepResult, fit
from distillation.lora import merge_adapters
from distillation.losses import (
    iou_token_loss,
    mask_hardness,
    masks_teacher_loss,
    network_teacher_loss,
    thresholded_iou,
)
from distillation.network_input import normalise, zeros_beyond
from distillation.prompt_sampling import corrective_click
from distillation.recipe_files import load_recipe
from distillation.sheets import Sample, draw_sheet
from distillation.step_batches import draw_in_workers
from distillation.student import build_student
from distillation.teachers import Prompts, Teacher, TeacherAnswer, load_teacher
from edgesam_core.arrays import SizeHW
from edgesam_core.decode import Prompt
from edgesam_core.encode import shown_part_hw
from edgesam_core.errors import RunError
from edgesam_core.nn.checkpoint import official_state_dict
from edgesam_core.nn.edge_sam import EdgeSam

SHEET_SAMPLES = 16
"""Tiles of a sample sheet."""


class PromptStage(Stage):
    """The student, its teacher, and the scenes that both are shown."""

    student: EdgeSam
    teacher: Teacher

    def __init__(self, config: PromptStageConfig, data: Path, *, init: Path | None = None) -> None:
        """Load everything that the run needs, so that what is wrong shows before the first step.

        Args:
            config: The recipe.
            data: Folder with ``open/``, ``cutouts/`` and ``unlabelled/``.
            init: Weights to start from instead of random ones.

        Raises:
            RunError: What is wrong with data, weights or teacher, by file and reason.
        """
        super().__init__()
        self.config, self.steps = config, config.steps
        wrong = []
        try:
            with naming(config.teacher):
                self.teacher = load_teacher(config.teacher, input_size=config.teacher_input_size)
            self.student = build_student(config, init, self.teacher)
        except RunError as exc:
            wrong.append(exc.sentence)
        try:
            self.scenes = TrainingScenes(config, data)
        except RunError as exc:
            wrong.append(exc.sentence)
        if wrong:
            raise RunError(" ".join(wrong))
        self.held_back = held_back_batches(config, self.scenes.held_back_sets)

    def forward(self, batch: Batch) -> StepResult:
        """The loop of one step: decode, compare, click where it is wrong, decode again."""
        embedding = self.embed(self.student, batch)
        embedding = embedding.repeat_interleave(batch.points.shape[1], dim=0)  # [I*P, 256, s, s]
        teacher = self.teacher.for_batch(batch)
        prompts = first_prompts(batch)
        total = embedding.new_zeros((), dtype=torch.float32)
        ious = []
        for round_index in range(batch.rounds):
            logits, iou_predictions = self.student.decode(embedding, **vars(prompts))
            answer = teacher.answer(prompts)
            with torch.autocast(logits.device.type, enabled=False):
                logits, iou_predictions = logits.float(), iou_predictions.float()
                several = round_index == 0 and not batch.starts_with_box
                total = total + self.round_loss(logits, iou_predictions, answer, batch, several)
            shown, wanted = compared_masks(logits, answer)
            ious.append(thresholded_iou(shown, wanted).mean())
            if round_index + 1 < batch.rounds:
                prompts = self.corrected(prompts, shown, wanted, batch)
        kind = "box" if batch.starts_with_box else "click"
        return StepResult(total, {f"{kind}_iou": ious[0], f"{kind}_last_iou": ious[-1]})

    def embed(self, student: EdgeSam, batch: Batch) -> torch.Tensor:
        """Images, or what is known of them already, to embeddings [I, 256, S/16, S/16]."""
        images = normalise(batch.images.to(next(student.parameters()).device))
        if batch.shown_hw is None:
            return student.encode(images)
        return encode_shown(student, images, batch.shown_hw)

    def round_loss(
        self,
        logits: torch.Tensor,
        iou_predictions: torch.Tensor,
        answer: TeacherAnswer,
        batch: Batch,
        several: bool,
    ) -> torch.Tensor:
        """A round's share of the loss; ``several``: the prompt is a single click."""
        config, rounds = self.config, batch.rounds
        if config.teacher == "masks":
            loss = masks_teacher_loss(
                logits,
                iou_predictions,
                answer.targets[:, 0],
                several=several,
                iou_weight=config.iou_weight,
            )
            return loss / rounds
        count = answer.targets.shape[1]  # 4 for clicks, 1 for boxes
        logits, iou_predictions = logits[:, :count], iou_predictions[:, :count]
        hardness = None
        if config.hard_mask_weighting:
            truth = batch.targets.flatten(0, 1).float() / 255
            hardness = mask_hardness(logits, answer.targets, truth)
        loss = network_teacher_loss(
            logits, answer.targets, image_share(batch)[:, None], rounds=rounds, hardness=hardness
        )
        if config.iou_weight and answer.iou_predictions is not None:
            iou_loss = iou_token_loss(iou_predictions, answer.iou_predictions)
            loss = loss + config.iou_weight / rounds * iou_loss
        return loss

    def corrected(
        self, prompts: Prompts, shown: torch.Tensor, wanted: torch.Tensor, batch: Batch
    ) -> Prompts:
        """The prompts with one click more, and in some rounds with the logits it corrects."""
        shown = shown.detach()
        inside = image_share(batch) > 0.5
        click, label = corrective_click((shown > 0) & inside, (wanted > 0.5) & inside)
        points, labels = prompts.point_coords, prompts.point_labels
        fed_back = bool(torch.rand(()) < self.config.mask_input_share)
        return Prompts(
            point_coords=click if points is None else torch.cat([points, click], 1),
            point_labels=label if labels is None else torch.cat([labels, label], 1),
            box_xyxy=prompts.box_xyxy,
            mask_input=shown[:, None] if fed_back else None,
        )

    def batches(self, first_step: int, rank: int, world: int) -> Iterator[Batch]:
        """From worker processes, step by step in order however many they are."""
        return draw_in_workers(self.scenes.starting_at(first_step, rank, world))

    @torch.no_grad()
    def evaluate(self, averaged: torch.nn.Module) -> Evaluation:
        """IoU of mask 0 on held-back images, for their boxes and for clicks in their middle."""
        student = cast("EdgeSam", averaged)
        device = next(student.parameters()).device
        ious: dict[str, list[torch.Tensor]] = {"box_iou": [], "click_iou": []}
        samples: list[Sample] = []
        for batch in self.held_back:
            embedding = self.embed(student, batch)
            embedding = embedding.repeat_interleave(batch.points.shape[1], dim=0)
            targets = batch.targets.flatten(0, 1).float() / 255
            for name, starts_with_box in (("box_iou", True), ("click_iou", False)):
                prompts = first_prompts(dataclasses.replace(batch, starts_with_box=starts_with_box))
                logits, _ = student.decode(embedding, **_on(device, prompts))
                mask_0 = logits[:, 0].float().cpu()
                ious[name].append(thresholded_iou(mask_0, targets))
                if len(samples) < SHEET_SAMPLES:
                    samples += pick_samples(batch, mask_0, ious[name][-1], starts_with_box)
        scores = {name: torch.cat(some).mean().item() for name, some in ious.items() if some}
        return Evaluation(scores, draw_sheet(samples[:SHEET_SAMPLES]))

    def weights(self, averaged: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Under the names of the published checkpoint, low-rank additions merged."""
        plain = copy.deepcopy(cast("EdgeSam", averaged))
        merge_adapters(plain)
        return official_state_dict(plain)


def encode_shown(student: EdgeSam, images: torch.Tensor, shown_hw: SizeHW) -> torch.Tensor:
    """Encode as a graph that leaves out the padding does (edgesam_core/encode.py).

    Args:
        student: Any EdgeSAM.
        images: [I, 3, S, S] float32, normalised.
        shown_hw: The part of them that shows image.

    Returns:
        [I, 256, S/16, S/16], zero where nothing was computed.
    """
    height, width = shown_part_hw(shown_hw)
    shown = images[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
    return zeros_beyond(student.encode(shown), images.shape[-1] // 16)


def first_prompts(batch: Batch) -> Prompts:
    """The boxes, or one click each, of all I images one after the other."""
    if batch.starts_with_box:
        return Prompts(box_xyxy=batch.boxes.flatten(0, 1))
    points = batch.points.flatten(0, 1)[:, None]  # [I*P, 1, 2]
    return Prompts(point_coords=points, point_labels=points.new_ones(len(points), 1))


def compared_masks(
    logits: torch.Tensor, answer: TeacherAnswer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each prompt's masks the one that the next click corrects: both [B, h, w]."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, answer.compared], answer.targets[rows, answer.compared]


def image_share(batch: Batch) -> torch.Tensor:
    """[I*P, S/4, S/4], the share of each cell that is image and not padding, for every prompt."""
    return (batch.valid.float() / 255).repeat_interleave(batch.points.shape[1], dim=0)


def _on(device: torch.device, prompts: Prompts) -> dict[str, Any]:
    return {name: v.to(device) for name, v in vars(prompts).items() if v is not None}


def pick_samples(
    batch: Batch, mask_0: torch.Tensor, ious: torch.Tensor, starts_with_box: bool
) -> list[Sample]:
    """The first prompt of the first four images, as tiles for a sheet."""
    prompts, size = batch.points.shape[1], batch.images.shape[-1]
    samples = []
    for i in range(min(4, len(batch.images))):
        shown = batch.points[i, 0].numpy()
        prompt = (
            Prompt(box_xyxy=batch.boxes[i, 0].numpy())
            if starts_with_box
            else Prompt(shown[None], np.ones(1, np.float32))
        )
        both = torch.stack([mask_0[i * prompts], batch.targets[i, 0].float() / 255 - 0.5])
        large = F.interpolate(both[None], size=(size, size), mode="bilinear")[0] > 0
        image = batch.images[i].permute(1, 2, 0).contiguous().numpy()
        caption = f"{'box' if starts_with_box else 'click'}, IoU {ious[i * prompts]:.2f}"
        samples.append(Sample(image, prompt, large[0].numpy(), large[1].numpy(), caption))
    return samples


def main() -> int:
    """The command line; 0 when the run has reached its end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--init", type=Path, help="weights to start from")
    add_threads(parser)
    args = parser.parse_args()

    def train() -> None:
        config = load_recipe(args.recipe, PromptStageConfig)
        stage = PromptStage(config, args.data, init=args.init)
        fit(stage, config, args.run, from_weights=args.init is not None)

    return run_command(train, threads=args.threads)


if __name__ == "__main__":
    sys.exit(main())
