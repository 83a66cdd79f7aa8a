"""Batches for the prompt stage: photos, pasted and procedural scenes, with first prompts.

Runs in worker processes beside the training loop. Everything in a batch has the same number of
prompts, so that one decoder call answers them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from distillation.configs import GranularityStageConfig, Phase, PromptStageConfig
from distillation.data import (
    Crop,
    LabelledImage,
    cut,
    draw_crop,
    draw_oblong,
    jitter_colour,
    load_set,
)
from distillation.prompt_sampling import draw_box, draw_point, innermost_point
from distillation.step_batches import StepBatches
from distillation.synth import load_cutouts, paste_scene, procedural_scene
from edgesam_core.arrays import SizeHW
from edgesam_core.errors import RunError

MOST_DRAWS = 1000
"""Crops in a row without an object, after which no other is to be expected."""


@dataclass(frozen=True)
class Batch:
    """What one step needs; I images with P prompts each."""

    images: torch.Tensor
    """[I, 3, S, S] uint8."""
    targets: torch.Tensor
    """[I, P, S/4, S/4] uint8, 255 where a cell is all object."""
    boxes: torch.Tensor
    """[I, P, 4] float32 x0, y0, x1, y1, pixel edges in the crop's frame."""
    points: torch.Tensor
    """[I, P, 2] float32 (x, y), the clicked pixel's index in the crop: its centre is at + 0.5."""
    valid: torch.Tensor
    """[I, S/4, S/4] uint8, 255 where a cell is all image, 0 where it is padding."""
    starts_with_box: bool = True
    """Whether the first prompts are the boxes, or else the points."""
    rounds: int = 1
    """Decoding rounds."""
    shown_hw: SizeHW | None = None
    """Height and width in pixels of what is encoded of an oblong crop; None: the whole square."""
    teacher_embeddings: torch.Tensor | None = None
    """[I, 256, T/16, T/16] where a teacher has seen these very images before."""


class TrainingScenes(StepBatches[Batch]):
    """A batch for every step; the schedule of phases decides its size and make-up."""

    def __init__(self, config: PromptStageConfig, data: Path) -> None:
        """Load photos and cut-outs into memory, to be shared by forked workers.

        Args:
            config: The recipe.
            data: Folder with ``open/``. Photos in ``unlabelled/`` lend drawn scenes their textures;
                pasted scenes cannot do without them and ``cutouts/``.

        Raises:
            RunError: What is wrong with the data, by file and reason.
        """
        super().__init__(config.steps)
        self.config = config
        self.sets, self.held_back_sets = load_both_halves(config, data)
        weights = np.array(list(config.set_weights.values()))
        self.set_shares = weights / weights.sum()
        self.grounds = [_read_ground(path) for path in sorted((data / "unlabelled").glob("*.jpg"))]
        if any(phase.pasted for phase in config.phases):
            self.cutouts = load_cutouts(data / "cutouts")
            if not self.grounds:
                raise RunError(f"There is no photo (*.jpg) to paste onto in {data / 'unlabelled'}.")

    def draw_step(self, step: int) -> Batch:
        """The batch of a step. Its form is the same in every process, so that none waits long."""
        phase = self.config.phase_at(step)
        form = np.random.default_rng((self.config.seed, step))
        rng = np.random.default_rng((self.config.seed, step, self.rank + 1))
        starts_with_box = bool(form.random() < phase.box_share)
        rounds = int(form.integers(phase.fewest_rounds, phase.rounds + 1))
        shown_hw = draw_oblong(form, phase.size) if form.random() < phase.oblong else None
        crops = [
            draw_until_usable(lambda: self._draw(rng, phase, shown_hw), phase.min_area)
            for _ in range(phase.batch)
        ]
        masks = [_repeat_to(rng, crop.masks, phase.prompts) for crop in crops]
        jitter = self.config.box_jitter
        boxes = np.stack([[draw_box(rng, mask, jitter=jitter) for mask in m] for m in masks])
        points = np.stack([[draw_point(rng, mask) for mask in m] for m in masks])
        batch = assemble(crops, masks, boxes, points, starts_with_box, rounds)
        return replace(batch, shown_hw=shown_hw)

    def _draw(self, rng: np.random.Generator, phase: Phase, shown_hw: SizeHW | None) -> Crop:
        crop = self._draw_square(rng, phase)
        return cut(crop, shown_hw, phase.min_area) if shown_hw else crop

    def _draw_square(self, rng: np.random.Generator, phase: Phase) -> Crop:
        kind = rng.random()
        if kind < phase.procedural:
            scene = procedural_scene(rng, phase.size, photos=self.grounds)
            return _from_scene(jitter_colour(rng, scene.image), scene.masks, phase)
        if kind < phase.procedural + phase.pasted:
            ground = self.grounds[rng.integers(len(self.grounds))]
            cutouts = [self.cutouts.draw(rng) for _ in range(rng.integers(3, 11))]
            scene = paste_scene(rng, ground, cutouts, phase.size)
            return _from_scene(jitter_colour(rng, scene.image), scene.masks, phase)
        photo = self._draw_photo(rng)
        return draw_crop(rng, photo, phase.size, max_masks=phase.prompts, min_area=phase.min_area)

    def _draw_photo(self, rng: np.random.Generator) -> LabelledImage:
        images = self.sets[rng.choice(len(self.sets), p=self.set_shares)]
        return images[rng.integers(len(images))]


def draw_until_usable(draw: Callable[[], Crop], min_area: float) -> Crop:
    """The first crop that shows an object.

    Args:
        draw: Draws a crop.
        min_area: Share of the crop's area that ``draw`` asks of an object, for the sentence.

    Raises:
        RunError: ``MOST_DRAWS`` crops have shown none.
    """
    for _ in range(MOST_DRAWS):
        crop = draw()
        if len(crop.masks):
            return crop
    raise RunError(
        f"min_area: none of {MOST_DRAWS} crops shows an object that fills {min_area:g} of it. "
        "Ask for smaller ones."
    )


SetsConfig = PromptStageConfig | GranularityStageConfig


def load_sets(config: SetsConfig, data: Path, *, validation: bool) -> list[list[LabelledImage]]:
    """The training or the held-back images of every set of a recipe.

    Raises:
        RunError: What is wrong with any of them, one sentence after the other.
    """
    sets, wrong = _load_half(config, data, validation)
    if wrong:
        raise RunError(" ".join(wrong))
    return sets


def load_both_halves(
    config: SetsConfig, data: Path
) -> tuple[list[list[LabelledImage]], list[list[LabelledImage]]]:
    """The training and the held-back images; what is wrong with either is told in one error."""
    training, wrong = _load_half(config, data, validation=False)
    held_back, more = _load_half(config, data, validation=True)
    if wrong or more:
        raise RunError(" ".join(dict.fromkeys(wrong + more)))
    return training, held_back


def _load_half(
    config: SetsConfig, data: Path, validation: bool
) -> tuple[list[list[LabelledImage]], list[str]]:
    sets, wrong = [], []
    for name in config.set_weights:
        folder = data / "open" / name
        try:
            images = load_set(folder, max_side=config.max_side, validation=validation)
        except RunError as exc:
            wrong.append(f"{name}: {exc.sentence}")
            continue
        if not images and not validation:
            wrong.append(f"{name}: no image with a mask in it. Leave the set out.")
        sets.append(images)
    return sets, wrong


def in_turn(sets: Sequence[Sequence[LabelledImage]]) -> Iterator[LabelledImage]:
    """The first image of each set, then the second of each, until all have been given."""
    rows = itertools.zip_longest(*sets)
    return (image for row in rows for image in row if image is not None)


def held_back_batches(
    config: PromptStageConfig, sets: Sequence[Sequence[LabelledImage]]
) -> list[Batch]:
    """Crops of images that are never trained on, the same at every evaluation.

    As many from each set as from any other; exact boxes, and clicks in the middle.
    """
    phase = config.phases[-1]
    rng = np.random.default_rng(0)
    batches = []
    chosen = list(itertools.islice(in_turn(sets), config.held_back))
    for start in range(0, len(chosen), phase.batch):
        crops = [
            draw_crop(rng, image, phase.size, max_masks=phase.prompts, min_area=phase.min_area)
            for image in chosen[start : start + phase.batch]
        ]
        crops = [crop for crop in crops if len(crop.masks)]
        if crops:
            masks = [_repeat_to(rng, crop.masks, phase.prompts) for crop in crops]
            boxes = np.stack([[draw_box(rng, mask, jitter=0) for mask in m] for m in masks])
            points = np.stack([[innermost_point(mask) for mask in m] for m in masks])
            batches.append(assemble(crops, masks, boxes, points, starts_with_box=True, rounds=1))
    return batches


def assemble(
    crops: Sequence[Crop],
    masks: Sequence[np.ndarray],
    boxes: np.ndarray,
    points: np.ndarray,
    starts_with_box: bool,
    rounds: int,
) -> Batch:
    """Arrays of I crops as one batch; ``masks`` holds [P, S, S] uint8 for each."""
    images = np.stack([crop.image for crop in crops])
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        targets=torch.from_numpy(np.stack([[_to_cells(mask) for mask in m] for m in masks])),
        boxes=torch.from_numpy(boxes),
        points=torch.from_numpy(points),
        valid=torch.from_numpy(np.stack([_to_cells(_valid_pixels(crop)) for crop in crops])),
        starts_with_box=starts_with_box,
        rounds=rounds,
    )


def _to_cells(mask: np.ndarray) -> np.ndarray:
    """[S, S] uint8 -> [S/4, S/4], the mean of each cell."""
    side = mask.shape[0] // 4
    return cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)


def _valid_pixels(crop: Crop) -> np.ndarray:
    if crop.valid is None:
        return np.full(crop.image.shape[:2], 255, np.uint8)
    return crop.valid


def _from_scene(image: np.ndarray, masks: np.ndarray, phase: Phase) -> Crop:
    kept = [m for m in masks if m.sum() >= phase.min_area * phase.size**2]
    stacked = np.array(kept, np.uint8).reshape(-1, phase.size, phase.size) * 255
    return Crop(image, stacked)


def _repeat_to(rng: np.random.Generator, masks: np.ndarray, count: int) -> np.ndarray:
    """Exactly ``count`` masks: all of them as evenly as possible, in random order."""
    order = np.concatenate([rng.permutation(len(masks)) for _ in range(-(-count // len(masks)))])
    return masks[order[:count]]


def _read_ground(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise RunError(f"The image {path} could not be read.")
    scale = 512 / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
