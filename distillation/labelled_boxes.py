"""Batches for the granularity stage: photos and the boxes of all labelled objects in them.

Only photos: what is pasted or drawn is labelled, the ground behind it is not, and an unlabelled
object would be told to be none.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from distillation.batches import draw_until_usable, in_turn, load_sets
from distillation.configs import GranularityStageConfig
from distillation.data import Crop, LabelledImage, draw_crop
from distillation.step_batches import StepBatches

MOST_OBJECTS = 100
"""Of one crop, drawn at random where there are more."""


@dataclass(frozen=True)
class BoxBatch:
    """What one step needs; I images with K objects together."""

    images: torch.Tensor
    """[I, 3, S, S] uint8."""
    boxes: torch.Tensor
    """[K, 4] float32 x0, y0, x1, y1, pixel edges in the crop's frame."""
    image_of_box: torch.Tensor
    """[K] int64, which image a box lies in."""


class LabelledBoxes(StepBatches[BoxBatch]):
    """Crops of photos with the boxes of all labelled objects in them."""

    def __init__(self, config: GranularityStageConfig, data: Path) -> None:
        """Load photos into memory, to be shared by forked workers.

        Args:
            config: The recipe.
            data: Folder with ``open/``.

        Raises:
            RunError: What is wrong with the data, by file and reason.
        """
        super().__init__(config.steps)
        self.config = config
        self.sets = load_sets(config, data, validation=False)
        weights = np.array(list(config.set_weights.values()))
        self.set_shares = weights / weights.sum()

    def draw_step(self, step: int) -> BoxBatch:
        """The batch of a step."""
        rng = np.random.default_rng((self.config.seed, step, self.rank))
        min_area = self.config.min_area
        return assemble(
            [draw_until_usable(lambda: self._draw(rng), min_area) for _ in range(self.config.batch)]
        )

    def _draw(self, rng: np.random.Generator) -> Crop:
        images = self.sets[rng.choice(len(self.sets), p=self.set_shares)]
        return draw_labelled(rng, images[rng.integers(len(images))], self.config)


def held_back_crops(config: GranularityStageConfig, data: Path) -> list[Crop]:
    """Crops of images that are never trained on, as many from each set as from any other."""
    sets = load_sets(config, data, validation=True)
    rng = np.random.default_rng(0)
    crops = (draw_labelled(rng, image, config) for image in in_turn(sets))
    return list(itertools.islice((crop for crop in crops if len(crop.masks)), config.held_back))


def draw_labelled(
    rng: np.random.Generator, image: LabelledImage, config: GranularityStageConfig
) -> Crop:
    """A window of a photo with all labelled objects in it."""
    return draw_crop(rng, image, config.size, max_masks=MOST_OBJECTS, min_area=config.min_area)


def mask_box(mask: np.ndarray) -> np.ndarray:
    """The box of a mask [S, S] with at least one pixel: [4] float32 pixel edges."""
    x, y, width, height = cv2.boundingRect(mask)
    return np.array([x, y, x + width, y + height], np.float32)


def assemble(crops: list[Crop]) -> BoxBatch:
    """Crops, each with at least one mask, as one batch."""
    images = np.stack([crop.image for crop in crops])
    boxes = np.stack([mask_box(mask) for crop in crops for mask in crop.masks])
    counts = [len(crop.masks) for crop in crops]
    return BoxBatch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        boxes=torch.from_numpy(boxes),
        image_of_box=torch.from_numpy(np.repeat(np.arange(len(crops)), counts)),
    )
