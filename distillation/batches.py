"""Endless batches for the prompt stage: photos, pasted and procedural scenes, with first prompts.

Runs in worker processes beside the training loop. Everything in a batch has the same number of
prompts, so that one decoder call answers them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from distillation.configs import Phase, PromptStageConfig
from distillation.data import Crop, LabelledImage, draw_crop, jitter_colour, load_set
from distillation.prompt_sampling import draw_box, draw_point
from distillation.synth import load_cutouts, paste_scene, procedural_scene


@dataclass(frozen=True)
class Batch:
    """What one step needs; I images with P prompts each."""

    images: torch.Tensor
    """[I, 3, S, S] uint8."""
    targets: torch.Tensor
    """[I, P, S/4, S/4] uint8, 255 where a cell is all object."""
    boxes: torch.Tensor
    """[I, P, 4] float32 x0, y0, x1, y1 in the crop's frame."""
    points: torch.Tensor
    """[I, P, 2] float32 (x, y) in the crop's frame."""


class TrainingScenes(IterableDataset[Batch]):
    """Batches from a step onward; the schedule of phases decides their size and make-up."""

    def __init__(self, config: PromptStageConfig, data: Path, *, start_step: int = 0) -> None:
        """Load photos and cut-outs into memory, to be shared by forked workers.

        Args:
            config: The recipe.
            data: Folder with ``open/``, ``cutouts/`` and ``unlabelled/``.
            start_step: Where a resumed run goes on.
        """
        self.config, self.start_step = config, start_step
        names = list(config.set_weights)
        self.sets = [load_set(data / "open" / name, max_side=config.max_side) for name in names]
        weights = np.array([config.set_weights[name] for name in names])
        self.set_shares = weights / weights.sum()
        self.cutouts = load_cutouts(data / "cutouts")
        self.grounds = [_read_ground(path) for path in sorted((data / "unlabelled").glob("*.jpg"))]

    def __iter__(self) -> Iterator[Batch]:
        """Worker w of n yields steps w, w + n, ...; a batch depends on seed and step only."""
        cv2.setNumThreads(1)
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.start_step + first, self.config.steps, stride):
            rng = np.random.default_rng((self.config.seed, step))
            phase = self.config.phase_at(step)
            yield self.draw_batch(rng, phase)

    def draw_batch(self, rng: np.random.Generator, phase: Phase) -> Batch:
        """One batch of a phase."""
        crops = [self._draw_usable(rng, phase) for _ in range(phase.batch)]
        chosen = [_repeat_to(rng, crop.masks, phase.prompts) for crop in crops]
        side = phase.size // 4
        targets = np.stack(
            [
                [cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA) for mask in masks]
                for masks in chosen
            ]
        )
        jitter = self.config.box_jitter
        boxes = np.stack([[draw_box(rng, mask, jitter=jitter) for mask in m] for m in chosen])
        points = np.stack([[draw_point(rng, mask) for mask in masks] for masks in chosen])
        images = np.stack([crop.image for crop in crops])
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(targets),
            torch.from_numpy(boxes),
            torch.from_numpy(points),
        )

    def _draw_usable(self, rng: np.random.Generator, phase: Phase) -> Crop:
        while True:
            crop = self._draw(rng, phase)
            if len(crop.masks):
                return crop

    def _draw(self, rng: np.random.Generator, phase: Phase) -> Crop:
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
    assert image is not None, path.name
    scale = 512 / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
