"""A project's annotations as training batches: views of its images, replayed scenes, prompts.

Each batch depends on seed, step and process alone, so that a run that was killed ends as one that
was not. Nothing here knows the network but ``FeatureCache``, which asks the frozen trunk.

Place: between ``project_views.py`` (how an image is looked at), ``project_prompts.py`` (what is
asked), ``replay.py`` (the scenes) and ``project_stage.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distillation.batches import Batch, assemble
from distillation.configs import PromptStageConfig
from distillation.data import PADDING_RGB, Crop
from distillation.feature_cache import FeatureCache
from distillation.project_prompts import (
    MIN_PX,
    free_pixels,
    prompts_inside,
    prompts_outside,
    shown_regions,
)
from distillation.project_set import ProjectImage
from distillation.project_views import WHOLE_VIEWS, look_through, view_of
from distillation.prompt_sampling import draw_box, draw_point
from distillation.replay import GATE_SCENES, replay_scene
from edgesam_core.encode import shown_part_hw
from edgesam_core.errors import RunError
from edgesam_core.preprocess import resized_size_hw


@dataclass(frozen=True, kw_only=True)
class ProjectStageConfig(PromptStageConfig):
    """Training on a project's labels: one phase, whose ``procedural`` is the share of replay.

    The phase's ``size`` is replaced by the base model's own.
    """

    set_weights: dict[str, float]
    """Not drawn by: a project is one set. ``{project: 1}``."""
    views: int = 6
    """Ways in which each image is looked at."""
    replay_scenes: int = 96
    """How many different scenes are replayed."""
    outside_share: float = 0.1
    """Share of prompts on the project's images that lie outside what was annotated; the frozen
    base model answers them."""
    stored_share: float = 0.5
    """Share of first prompts that are the annotator's own, where one is known."""
    most_images: int = 300
    """More than so many images of a project are not kept in memory; which ones is drawn."""


@dataclass(frozen=True, kw_only=True)
class ProjectBatch(Batch):
    """A batch whose images the frozen trunk has seen."""

    features: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """Of each image, as ``FeatureCache.get`` gives them; smaller where padding is left out."""
    from_base: torch.Tensor
    """[I, P] bool: prompts outside what was annotated, which the base model answers."""


@dataclass(frozen=True)
class Asked:
    """One crop with exactly P prompts."""

    crop: Crop
    masks: np.ndarray
    """[P, S, S] uint8, all zeros where the base model answers."""
    boxes: np.ndarray
    points: np.ndarray
    from_base: np.ndarray
    features: tuple[torch.Tensor, torch.Tensor]


class ProjectScenes:
    """Draws the batches of a run; each depends on seed, step and rank only."""

    def __init__(
        self,
        config: ProjectStageConfig,
        images: Sequence[ProjectImage],
        features: FeatureCache,
        *,
        leaves_out_padding: bool = False,
    ) -> None:
        """Take what is drawn from.

        Args:
            config: The recipe, its phase at the base model's size.
            images: Of the training tasks; at least one.
            features: Of the base model's trunk.
            leaves_out_padding: Whether the base model is given no padding of a whole image.

        Raises:
            RunError: There is no image.
        """
        if not images:
            raise RunError(
                "There is no annotated region to learn from. Label more tasks and train again."
            )
        self.config, self.images, self.features = config, images, features
        self.size, self.leaves_out_padding = config.phases[0].size, leaves_out_padding

    def draw_step(self, step: int, rank: int = 0) -> ProjectBatch:
        """The batch of a step."""
        phase = self.config.phases[0]
        form = np.random.default_rng((self.config.seed, step))
        rng = np.random.default_rng((self.config.seed, step, rank + 1))
        starts_with_box = bool(form.random() < phase.box_share)
        rounds = int(form.integers(phase.fewest_rounds, phase.rounds + 1))
        asked = [self._draw(rng) for _ in range(phase.batch)]
        return self.assemble(asked, starts_with_box=starts_with_box, rounds=rounds)

    def _draw(self, rng: np.random.Generator) -> Asked:
        phase = self.config.phases[0]
        while True:
            if rng.random() < phase.procedural:
                number = GATE_SCENES + int(rng.integers(self.config.replay_scenes))
                asked = self.ask_scene(rng, number)
            else:
                image = self.images[int(rng.integers(len(self.images)))]
                asked = self.ask_view(rng, image, int(rng.integers(self.config.views)))
            if asked is not None:
                return asked

    def ask_scene(self, rng: np.random.Generator, number: int) -> Asked | None:
        """Prompts on a replayed scene."""
        prompts = self.config.phases[0].prompts
        scene = replay_scene(number, self.size)
        chosen = _repeated(rng, len(scene.masks), prompts)
        masks = scene.masks[chosen].astype(np.uint8) * 255
        if not len(masks) or (masks.sum(axis=(1, 2)) < 255 * MIN_PX).any():
            return None
        return Asked(
            Crop(scene.image, masks),
            masks,
            np.stack([draw_box(rng, m, jitter=self.config.box_jitter) for m in masks]),
            np.stack([draw_point(rng, m) for m in masks]),
            np.zeros(prompts, np.bool_),
            self.features.get(f"scene-{number}", lambda: scene.image),
        )

    def ask_view(self, rng: np.random.Generator, image: ProjectImage, number: int) -> Asked | None:
        """Prompts on a view of a project's image; None where it shows no region."""
        size, prompts = self.size, self.config.phases[0].prompts
        view = view_of(image, number, size, self.config.seed)
        regions = shown_regions(rng, image, view, size, most=prompts)
        if not regions:
            return None
        everywhere = np.full(image.image.shape[:2], 255, np.uint8)
        valid = look_through(view, everywhere, size)
        share = self.config.outside_share
        free = free_pixels(image, view, size, valid) if share else None
        boxes, points, masks, from_base = [], [], [], []
        for turn in range(prompts):
            if free is not None and rng.random() < share:
                box, point = prompts_outside(rng, free)
                masks.append(np.zeros((size, size), np.uint8))
            else:
                index, mask = regions[turn % len(regions)]
                box, point = prompts_inside(
                    rng,
                    mask,
                    image.stored[index],
                    view,
                    stored_share=self.config.stored_share,
                    box_jitter=self.config.box_jitter,
                )
                masks.append(mask)
            from_base.append(not masks[-1].any())
            boxes.append(box)
            points.append(point)

        def pixels() -> np.ndarray:
            return look_through(view, image.image, size, border=PADDING_RGB)

        def encoded_pixels() -> np.ndarray:
            if number in WHOLE_VIEWS and self.leaves_out_padding:
                original_size_hw = image.image.shape[0], image.image.shape[1]
                height, width = shown_part_hw(resized_size_hw(original_size_hw, size))
                return pixels()[:height, :width]
            return pixels()

        key = f"image-{image.image_id}-{number}"
        return Asked(
            Crop(pixels(), np.stack(masks), valid),
            np.stack(masks),
            np.stack(boxes),
            np.stack(points),
            np.array(from_base),
            self.features.get(key, encoded_pixels),
        )

    def assemble(
        self, asked: Sequence[Asked], *, starts_with_box: bool = True, rounds: int = 1
    ) -> ProjectBatch:
        """Several crops as one batch."""
        plain = assemble(
            [a.crop for a in asked],
            [a.masks for a in asked],
            np.stack([a.boxes for a in asked]),
            np.stack([a.points for a in asked]),
            starts_with_box,
            rounds,
        )
        return ProjectBatch(
            **vars(plain),
            features=tuple(a.features for a in asked),
            from_base=torch.from_numpy(np.stack([a.from_base for a in asked])),
        )


def _repeated(rng: np.random.Generator, count: int, wanted: int) -> np.ndarray:
    """``wanted`` indices below ``count``: all of them as evenly as possible, in random order."""
    rounds = -(-wanted // max(count, 1)) if count else 0
    order = [rng.permutation(count) for _ in range(rounds)]
    return np.concatenate(order)[:wanted] if order else np.zeros(0, np.int64)
