"""Stage 3, granularity prior: boxes of whole objects, proposed from the frozen encoder's features.

    python -m distillation.granularity_stage RECIPE MODEL DATA_DIR RUN_DIR
    python -m edgesam_core bundle RUN_DIR/student.safetensors OUT --input-size S

``MODEL`` is a bundle or a checkpoint of EdgeSAM; of it nothing changes, so what it answers without
the prior stays what it was. What comes out is a checkpoint of both together, from which the second
command makes a bundle with the third graph.

The labels decide what an object is: trained on whole things, a click on a wheel gets the car. A set
in which half of the objects are unlabelled teaches that they are none.

Paper: EdgeSAM (arXiv 2312.06660), section 3.3. Its repository has no training code for this stage:
proposal_loss.py says where the numbers come from. Where this differs from the paper: AdamW with the
engine's schedule instead of MMDetection's "1x", and crops (data.py) instead of whole photos only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import nn

from distillation.command import add_threads, naming, run_command
from distillation.configs import GranularityStageConfig
from distillation.data import Crop
from distillation.engine import Evaluation, Stage, StepResult, fit
from distillation.labelled_boxes import BoxBatch, LabelledBoxes, held_back_crops, mask_box
from distillation.metrics import mask_iou
from distillation.network_input import normalise
from distillation.prompt_sampling import innermost_point
from distillation.proposal_loss import box_iou, proposal_loss
from distillation.recipe_files import load_recipe
from distillation.sheets import Sample, draw_sheet
from distillation.step_batches import draw_in_workers
from distillation.torch_segmenter import TorchSegmenter
from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.errors import RunError
from edgesam_core.granularity import MergeRule, anchors
from edgesam_core.nn.checkpoint import official_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.family import read_model
from edgesam_core.nn.granularity import GranularityPrior, build_granularity_prior
from edgesam_core.nn.repvit import stage_outputs
from edgesam_core.segmenter import with_proposed_box

SHEET_SAMPLES = 16
"""Tiles of a sample sheet."""


class GranularityStage(Stage):
    """The prior that learns, and the frozen model under it."""

    student: GranularityPrior
    anchors: torch.Tensor

    def __init__(
        self,
        config: GranularityStageConfig,
        model: Path,
        data: Path,
        *,
        init: Path | None = None,
    ) -> None:
        """Load everything that the run needs, so that what is wrong shows before the first step.

        Args:
            config: The recipe.
            model: A bundle's folder or a checkpoint of EdgeSAM.
            data: Folder with ``open/``.
            init: A checkpoint whose prior to start from instead of a random one.

        Raises:
            RunError: The model is not EdgeSAM or of another size, a checkpoint cannot be read or
                does not fit, or the data is wrong.
        """
        super().__init__()
        self.config, self.steps = config, config.steps
        self.model = read_frozen(model, config.size)
        torch.manual_seed(config.seed)
        features = self.features(torch.zeros(1, 3, 64, 64))
        self.student = GranularityPrior([feature.shape[1] for feature in features])
        if init is not None:
            with naming(init):
                start = build_granularity_prior(read_checkpoint(init))
            if start is None:
                raise RunError(f"{init} holds no granularity prior.")
            try:
                self.student.load_state_dict(start.state_dict())
            except RuntimeError as exc:
                raise RunError(f"{init}: its granularity prior is of another model.") from exc
        table = torch.from_numpy(anchors(config.size).copy())
        self.register_buffer("anchors", table, persistent=False)
        self.photos = LabelledBoxes(config, data)
        self.held_back = held_back_crops(config, data)

    def train(self, mode: bool = True) -> Self:
        """The frozen model stays in evaluation mode: its norms see no batch."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, batch: BoxBatch) -> StepResult:
        """Focal and Huber loss of all anchors."""
        logits, deltas = self.student(*self.features(normalise(batch.images)))
        with torch.autocast(logits.device.type, enabled=False):
            objectness, box, positives = proposal_loss(
                logits.float(), deltas.float(), self.anchors, batch.boxes, batch.image_of_box
            )
        per_box = positives / len(batch.boxes)
        metrics = {"objectness_loss": objectness, "box_loss": box, "anchors_per_object": per_box}
        return StepResult(objectness + box, {k: v.detach() for k, v in metrics.items()})

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """[I, 3, S, S] normalised -> the frozen encoder's stage1, stage2 and stage3."""
        _, *features = stage_outputs(self.model.image_encoder.backbone, images)
        return features

    def batches(self, first_step: int, rank: int, world: int) -> Iterator[BoxBatch]:
        """Photos from worker processes, step by step in order however many they are."""
        return draw_in_workers(self.photos.starting_at(first_step, rank, world))

    @torch.no_grad()
    def evaluate(self, averaged: nn.Module) -> Evaluation:
        """Held-back objects, each clicked on in its middle, through the code that serves.

        ``recall`` is the share of objects of which some proposal has an IoU of at least 0.5;
        ``click_iou`` the mean IoU of the masks without the prior, ``best_iou`` and ``mean_iou``
        with it, by merge rule.
        """
        assert isinstance(averaged, GranularityPrior)
        segmenter = TorchSegmenter(self.model, self.config.size, averaged)
        found: list[bool] = []
        rules: dict[str, MergeRule | None] = {"click": None, "best": "best", "mean": "mean"}
        ious: dict[str, list[float]] = {name: [] for name in rules}
        samples: list[Sample] = []
        for crop in self.held_back:
            embedding = segmenter.embed(crop.image, with_proposals=True)
            found += recalled(embedding, crop)
            clicks = [Prompt.from_clicks([(*innermost_point(m) + 0.5, 1)]) for m in crop.masks]
            for name, rule in rules.items():
                suggestions = segmenter.segment(embedding, clicks, merge_rule=rule)
                masks = [suggestion.mask.full() for suggestion in suggestions]
                ious[name] += [mask_iou(m, t > 0) for m, t in zip(masks, crop.masks, strict=True)]
                if rule == "best" and len(samples) < SHEET_SAMPLES:
                    shown = with_proposed_box(clicks[0], embedding, rule)
                    target = crop.masks[0] > 0
                    caption = f"IoU {mask_iou(masks[0], target):.2f}"
                    samples.append(Sample(crop.image, shown, masks[0], target, caption))
        scores = {f"{name}_iou": float(np.mean(some)) for name, some in ious.items() if some}
        if found:
            scores["recall"] = float(np.mean(found))
        return Evaluation(scores, draw_sheet(samples))

    def weights(self, averaged: nn.Module) -> dict[str, torch.Tensor]:
        """Both networks under the names of a published checkpoint: 821 + 432 tensors."""
        return {**official_state_dict(self.model), **averaged.state_dict()}


def read_frozen(path: Path, size: int) -> EdgeSam:
    """The model under the prior, frozen, in evaluation mode.

    Raises:
        RunError: It cannot be read, is not EdgeSAM, or a bundle of another input size than the
            recipe's.
    """
    with naming(path):
        model = read_model(path)
    if not isinstance(model, EdgeSam):
        raise RunError(f"{path} is {model.architecture}: a granularity prior goes with EdgeSAM.")
    if model.input_size not in (None, size):
        raise RunError(f"size: {path} works at {model.input_size} pixels, the recipe at {size}.")
    return model.eval().requires_grad_(False)


def recalled(embedding: Embedding, crop: Crop) -> list[bool]:
    """Of every object of a crop, whether some proposal has an IoU of at least 0.5 with its box."""
    assert embedding.proposals is not None
    if len(embedding.proposals.scores) == 0:
        return [False] * len(crop.masks)
    proposed = torch.from_numpy(embedding.proposals.boxes_xyxy)
    boxes = torch.from_numpy(np.stack([mask_box(mask) for mask in crop.masks]))
    found: list[bool] = (box_iou(proposed, boxes).amax(dim=0) >= 0.5).tolist()
    return found


def main() -> int:
    """The command line; 0 when the run has reached its end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("model", type=Path, help="a bundle or a checkpoint of EdgeSAM")
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--init", type=Path, help="a checkpoint whose prior to start from")
    add_threads(parser)
    args = parser.parse_args()

    def train() -> None:
        config = load_recipe(args.recipe, GranularityStageConfig)
        stage = GranularityStage(config, args.model, args.data, init=args.init)
        fit(stage, config, args.run, from_weights=args.init is not None)

    return run_command(train, threads=args.threads)


if __name__ == "__main__":
    sys.exit(main())
