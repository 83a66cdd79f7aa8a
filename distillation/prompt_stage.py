"""Prompts in the loop: click or box, then a click wherever the student is wrong.

    python -m distillation.prompt_stage distillation/recipes/default.yaml DATA_DIR RUN_DIR

The student is EdgeSAM; the teacher here is the masks themselves. One step draws a batch of crops
with several prompts each, decodes all of them in one call, and then again with one corrective click
more; the loss is the mean over the rounds. Read from ``train`` downward.

Paper: EdgeSAM (arXiv 2312.06660), section 3.2 and algorithm 1.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from distillation.batches import Batch, TrainingScenes
from distillation.configs import Phase, PromptStageConfig, load_recipe, save_recipe
from distillation.losses import mask_loss, soft_iou
from distillation.prompt_sampling import corrective_click
from edgesam_core.nn.checkpoint import load_state_dict, official_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.preprocess import MEAN_RGB, STD_RGB

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 240


def train(
    config: PromptStageConfig, data: Path, run: Path, *, init: Path | None, device: torch.device
) -> None:
    """Train until the recipe ends; a run folder that holds a checkpoint is continued.

    Args:
        config: The recipe.
        data: Folder with ``open/``, ``cutouts/`` and ``unlabelled/``.
        run: Receives ``checkpoint.pt``, ``student.safetensors`` (the averaged weights under their
            official names), ``recipe.yaml`` and ``log.jsonl``.
        init: Weights to start from instead of random ones.
        device: Where the student learns.
    """
    run.mkdir(parents=True, exist_ok=True)
    save_recipe(config, run / "recipe.yaml")
    torch.manual_seed(config.seed)
    student = EdgeSam(draws_prompts=config.draws_prompts).to(device)
    cast("Any", student).to(memory_format=torch.channels_last)
    if init is not None:
        load_state_dict(student, read_checkpoint(init))
    averaged = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = build_optimizer(student, config)
    step = resume(run, student, averaged, optimizer)

    student.train()
    started, saved, first_step = time.monotonic(), time.monotonic(), step
    meter: dict[str, float] = {}
    for batch in load_batches(config, data, step):
        phase = config.phase_at(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        use_boxes = bool(torch.rand(()) < phase.box_share)
        loss, ious = prompt_loop_loss(student, batch, phase, config, use_boxes, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
        optimizer.step()
        step += 1
        update_average(averaged, student, min(config.ema_decay, step / (step + 10)))

        kind = "box" if use_boxes else "click"
        values = {"loss": loss.item(), f"{kind}_iou": ious[0], f"{kind}_last_iou": ious[-1]}
        meter |= {k: 0.98 * meter.get(k, v) + 0.02 * v for k, v in values.items()}
        if step % 50 == 0:
            rate = (step - first_step) / (time.monotonic() - started)
            row = {"step": step, "size": phase.size, "steps_per_s": round(rate, 3)}
            row |= {k: round(v, 4) for k, v in sorted(meter.items())}
            row["eta_min"] = round((config.steps - step) / rate / 60, 1)
            logger.info("%s", row)
            with (run / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if time.monotonic() - saved > SAVE_EVERY_S or step == config.steps:
            save(run, step, student, averaged, optimizer)
            saved = time.monotonic()


def prompt_loop_loss(
    student: EdgeSam,
    batch: Batch,
    phase: Phase,
    config: PromptStageConfig,
    use_boxes: bool,
    device: torch.device,
) -> tuple[torch.Tensor, list[float]]:
    """The loop of one step: decode, compare, click where it is wrong, decode again.

    Returns:
        The mean loss over the rounds, and the mean IoU of mask 0 after each round.
    """
    images = normalise(batch.images.to(device))
    reduced = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
    with reduced:
        embedding = student.encode(images)
    embedding = embedding.repeat_interleave(phase.prompts, dim=0)  # [I*P, 256, s, s]
    targets = batch.targets.to(device).flatten(0, 1).float() / 255  # [I*P, S/4, S/4]
    boxes = batch.boxes.to(device).flatten(0, 1) if use_boxes else None
    points = labels = mask_input = None
    if not use_boxes:
        points = batch.points.to(device).flatten(0, 1)[:, None]  # [I*P, 1, 2]
        labels = points.new_ones(len(points), 1)

    total = images.new_zeros(())
    ious = []
    rounds = int(torch.randint(1, phase.rounds + 1, ()))
    for round_index in range(rounds):
        with reduced:
            logits, iou_predictions = student.decode(
                embedding,
                point_coords=points,
                point_labels=labels,
                box_xyxy=boxes,
                mask_input=mask_input,
            )
        logits, iou_predictions = logits.float(), iou_predictions.float()
        several = round_index == 0 and not use_boxes
        total = total + mask_loss(
            logits, iou_predictions, targets, several=several, iou_weight=config.iou_weight
        )
        ious.append(soft_iou(logits[:, 0], targets).mean().item())
        if round_index + 1 < rounds:
            shown = logits[:, :1].detach()
            click, label = corrective_click(shown[:, 0] > 0, targets > 0.5)
            points = click if points is None else torch.cat([points, click], 1)
            labels = label if labels is None else torch.cat([labels, label], 1)
            fed_back = bool(torch.rand(()) < config.mask_input_share)
            mask_input = shown if fed_back else None
    return total / rounds, ious


def normalise(images: torch.Tensor) -> torch.Tensor:
    """[I, 3, S, S] uint8 -> float32 by the reference's mean and deviation, channels last."""
    mean = torch.from_numpy(MEAN_RGB).to(images.device).reshape(1, 3, 1, 1)
    std = torch.from_numpy(STD_RGB).to(images.device).reshape(1, 3, 1, 1)
    return ((images.float() - mean) / std).to(memory_format=torch.channels_last)


def load_batches(config: PromptStageConfig, data: Path, step: int) -> Iterator[Batch]:
    """Batches from one worker process on a CPU machine; each step's depends on seed and step."""
    scenes = TrainingScenes(config, data, start_step=step)
    yield from DataLoader(scenes, batch_size=None, num_workers=1, prefetch_factor=4)


def build_optimizer(student: EdgeSam, config: PromptStageConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only. The positional frequencies are a buffer."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        is_matrix = parameter.ndim > 1 and "embed" not in name and "token.weight" not in name
        (decayed if is_matrix and "tokens.weight" not in name else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))


def learning_rate(config: PromptStageConfig, step: int) -> float:
    """Linear warm-up, a plateau, and half a cosine down to a hundredth of the peak.

    The plateau ends ``decay_steps`` before the recipe does, so a run that was on it can be given
    more steps without having wasted a decay.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps)
    left = min(1.0, (config.steps - step) / max(1, config.decay_steps))
    cosine = 0.5 * (1 - math.cos(math.pi * left))
    return config.learning_rate * warm * (0.01 + 0.99 * cosine)


@torch.no_grad()
def update_average(averaged: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the average a little towards the student, BatchNorm's statistics included."""
    for mean, new in zip(
        averaged.state_dict().values(), student.state_dict().values(), strict=True
    ):
        if mean.dtype.is_floating_point:
            mean.lerp_(new, 1 - decay)
        else:
            mean.copy_(new)


def save(
    run: Path, step: int, student: EdgeSam, averaged: EdgeSam, optimizer: torch.optim.Optimizer
) -> None:
    """Write the training state and the averaged weights, each whole or not at all."""
    from safetensors.torch import save_file

    state = {
        "step": step,
        "student": student.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, run / "checkpoint.tmp")
    (run / "checkpoint.tmp").replace(run / "checkpoint.pt")
    weights = {k: v.contiguous() for k, v in official_state_dict(averaged).items()}
    save_file(weights, run / "student.tmp")
    (run / "student.tmp").replace(run / "student.safetensors")


def resume(run: Path, student: EdgeSam, averaged: EdgeSam, optimizer: torch.optim.Optimizer) -> int:
    """Load the run's checkpoint if there is one; returns the step to go on with."""
    path = run / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    student.load_state_dict(state["student"])
    averaged.load_state_dict(state["averaged"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--init", type=Path, help="weights to start from")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train(load_recipe(args.recipe), args.data, args.run, init=args.init, device=device)


if __name__ == "__main__":
    main()
