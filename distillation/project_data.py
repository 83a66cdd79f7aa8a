"""A project's annotations as training batches: views of its images, replayed scenes, prompts.

An image is looked at in a few fixed ways (``View``: whole as in serving, flipped, and cut out), so
that the frozen trunk needs to see each of them once: ``FeatureCache`` keeps what it answered. Among
the crops of a batch are scenes drawn by ``synth`` from a seed, with exact masks, so that what the
base model could do before stays in sight. The first ``GATE_SCENES`` scenes are the gate's and never
trained on.

Place: between a snapshot folder (COCO, read by ``coco.py``) and ``project_stage.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn

from distillation import coco
from distillation.batches import Batch, assemble
from distillation.coco_masks import mask_to_coco_rle
from distillation.configs import PromptStageConfig
from distillation.data import Crop, warp, window_matrix
from distillation.instances import AnnotatedImage
from distillation.network_input import normalise
from distillation.prompt_sampling import draw_box, draw_point
from distillation.run_folder import write_whole
from distillation.synth import Scene, procedural_scene
from edgesam_core.arrays import Mask
from edgesam_core.decode import Prompt
from edgesam_core.errors import PromptError, RunError
from edgesam_core.nn.repvit import stage_outputs
from edgesam_core.windowed_mask import WindowedMask

GATE_SCENES = 48
"""Scenes 0 to 47 are what the gate asks about; those from 48 on are replayed in training."""

REPLAY_SEED = 1106
"""Of the scenes, for ever: two versions are compared on the same."""

PADDING_RGB = (124, 116, 104)
"""The normalisation's mean colour, as in ``draw_crop``."""

NEAR_PX = 3
"""A click this close to the mask's edge is on either side of it, in pixels of the original."""

MIN_SEEN = 0.3
"""A region of which less than this share of its box lies in the view is not asked for."""

MIN_PX = 16
"""Nor one that covers fewer pixels of the view."""


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


@dataclass(frozen=True)
class ProjectSet:
    """One half of a snapshot."""

    images: tuple[AnnotatedImage, ...]
    """Those with at least one region."""
    label_of: Mapping[int, str]
    """Annotation id -> the annotators' word."""
    task_of: Mapping[int, int]
    """Image id -> task id."""
    stored: Mapping[int, Prompt]
    """Annotation id -> the prompt that made its suggestion, in original pixels."""

    @property
    def region_count(self) -> int:
        """Regions of all images."""
        return sum(len(image.instances) for image in self.images)


def load_project_set(file: Path, images_dir: Path) -> ProjectSet:
    """Read ``train.json`` or ``held_out.json`` of a snapshot.

    Raises:
        RunError: Something is wrong with the file.
    """
    annotated = coco.load_set(file.stem, file, images_dir)
    coco.refuse(annotated.findings)
    content = json.loads(file.read_bytes())
    stored = {
        record["id"]: prompt
        for record in content["annotations"]
        if (prompt := _stored_prompt(record.get("edgesam"))) is not None
    }
    names = {i: str(c.get("name", i)) for i, c in annotated.categories.items()}
    return ProjectSet(
        images=tuple(image for image in annotated.images if image.instances),
        label_of={
            instance.annotation_id: names.get(instance.category_id or 0, "object")
            for image in annotated.images
            for instance in image.instances
        },
        task_of={image["id"]: int(image.get("task", image["id"])) for image in content["images"]},
        stored=stored,
    )


def _stored_prompt(story: Any) -> Prompt | None:
    """The prompt of a region's ``meta.edgesam``; None where there is none that can be asked."""
    try:
        drawn = story["prompt"]
        box = drawn.get("box")
        return Prompt(
            point_coords=np.array(drawn.get("points") or [], np.float32).reshape(-1, 2),
            point_labels=np.array(drawn.get("labels") or [], np.float32),
            box_xyxy=None if box is None else np.array(box, np.float32),
        )
    except (KeyError, TypeError, AttributeError, ValueError, PromptError):
        return None


def honours(mask: Mask, prompt: Prompt) -> bool:
    """Whether a mask can be what its prompt meant.

    Every positive click is within ``NEAR_PX`` of it, no negative one deep inside, and its box and
    the prompt's have an IoU of a half or more.
    """
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * NEAR_PX + 1,) * 2, np.uint8))
    deep = cv2.erode(mask.astype(np.uint8), np.ones((2 * NEAR_PX + 1,) * 2, np.uint8))
    height, width = mask.shape
    for (x, y), label in zip(prompt.point_coords, prompt.point_labels, strict=True):
        row, column = min(int(y), height - 1), min(int(x), width - 1)
        if not near[row, column] if label == 1 else deep[row, column]:
            return False
    if prompt.box_xyxy is None:
        return True
    own = WindowedMask.from_full(mask).box_xyxy
    if own is None:
        return False
    a, b = np.array(own, np.float64), prompt.box_xyxy.astype(np.float64)
    overlap = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    either = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap
    return bool(overlap >= either / 2)


def honoured_prompts(project: ProjectSet, *, most: int = 200) -> tuple[int, int]:
    """How many masks could be what their stored prompts meant, and how many were looked at.

    An annotator who accepts or mends a suggestion leaves it where the prompt was. Where masks and
    prompts do not belong together, regions were mixed up or moved on their way here.

    Args:
        project: One half of a snapshot.
        most: At most so many regions are looked at.

    Raises:
        RunError: A mask cannot be read.
    """
    told = [
        (instance, project.stored[instance.annotation_id])
        for image in project.images
        for instance in image.instances
        if instance.annotation_id in project.stored
    ]
    order = np.random.default_rng(0).permutation(len(told))[:most]
    looked_at = [(told[i][0].mask(), told[i][1]) for i in order]
    return sum(honours(mask, prompt) for mask, prompt in looked_at), len(looked_at)


# --- images in memory ---


@dataclass(frozen=True)
class ProjectImage:
    """An image and its regions, at the size in which they are kept."""

    image_id: int
    image: np.ndarray
    """[H, W, 3] uint8 RGB."""
    coco_rles: tuple[dict[str, Any], ...]
    boxes_xyxy: np.ndarray
    """[K, 4] float32 pixels."""
    stored: tuple[Prompt | None, ...]
    """In pixels of ``image``."""


def read_images(
    project: ProjectSet, *, max_side: int, most: int | None = None, seed: int = 0
) -> list[ProjectImage]:
    """Decode images and regions, once.

    Args:
        project: One half of a snapshot.
        max_side: Images are kept at this long side at most, in pixels.
        most: At most so many images, drawn by ``seed``.
        seed: See ``most``.

    Raises:
        RunError: An image or mask cannot be read; file and reason.
    """
    order = np.random.default_rng(seed).permutation(len(project.images))[:most]
    read = []
    for index in np.sort(order):
        annotated = project.images[index]
        pixels, masks, findings = coco.decode_image(annotated)
        found = [f for f in findings if not f.reason.endswith("is empty")]
        coco.refuse(found)
        assert pixels is not None
        scale = min(1.0, max_side / max(pixels.shape[:2]))
        if scale < 1.0:
            size_wh = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
            pixels = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)
            masks = [
                cv2.resize(m.astype(np.uint8) * 255, size_wh, interpolation=cv2.INTER_AREA) > 127
                for m in masks
            ]
        kept = [(i, m) for i, m in zip(annotated.instances, masks, strict=True) if m.any()]
        if not kept:
            continue
        rles = tuple(mask_to_coco_rle(mask) for _, mask in kept)
        boxes = np.array([coco_mask.toBbox(rle) for rle in rles], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        stored = tuple(_scaled(project.stored.get(i.annotation_id), scale) for i, _ in kept)
        read.append(ProjectImage(annotated.image_id, pixels, rles, boxes, stored))
    return read


def _scaled(prompt: Prompt | None, scale: float) -> Prompt | None:
    if prompt is None:
        return None
    box = prompt.box_xyxy
    return Prompt(
        prompt.point_coords * np.float32(scale),
        prompt.point_labels,
        None if box is None else box * np.float32(scale),
    )


# --- views ---


@dataclass(frozen=True)
class View:
    """One of the fixed ways to look at an image."""

    matrix: np.ndarray
    """[2, 3], pixels of the image -> pixels of the S x S input."""
    scale: float


def view_of(image: ProjectImage, number: int, size: int, seed: int) -> View:
    """View 0 is the whole image as in serving, view 1 its mirror image, the others are windows.

    A window lies around a region, flipped in half of the cases, and is a third of the image's long
    side or more.
    """
    height, width = image.image.shape[:2]
    long_side = float(max(height, width))
    if number < 2:
        scale = size / long_side
        return View(_fitted(0.0, 0.0, scale, width, flip=number == 1), scale)
    rng = np.random.default_rng((seed, image.image_id, number))
    x0, y0, x1, y1 = image.boxes_xyxy[rng.integers(len(image.boxes_xyxy))]
    extent = max(x1 - x0, y1 - y0)
    side = float(np.clip(extent * np.exp(rng.uniform(0.2, 1.6)), long_side / 3, long_side))
    left = x0 - rng.uniform(0.05, 0.95) * max(side - (x1 - x0), 0.0)
    top = y0 - rng.uniform(0.05, 0.95) * max(side - (y1 - y0), 0.0)
    scale = size / side
    return View(window_matrix(left, top, scale, size, flip=bool(rng.random() < 0.5)), scale)


def _fitted(x0: float, y0: float, scale: float, width: int, *, flip: bool) -> np.ndarray:
    """The whole image at the upper left, its padding to the right and below also when flipped."""
    matrix = np.array([[scale, 0, -x0 * scale], [0, scale, -y0 * scale]], np.float64)
    if flip:
        matrix[0] = [-scale, 0, (width - 1) * scale]
    return matrix


def look_through(view: View, array: np.ndarray, size: int, *, border: Any = 0) -> np.ndarray:
    """Pixels [H, W, ...] uint8 through a view: [S, S, ...]."""
    way = cv2.INTER_AREA if view.scale < 0.6 else cv2.INTER_LINEAR
    return warp(array, view.matrix, view.scale, size, way, border=border)


def seen_through(view: View, prompt: Prompt, size: int) -> Prompt | None:
    """A stored prompt in a view's frame; None where it leaves the view."""
    linear, shift = view.matrix[:, :2], view.matrix[:, 2]
    # A stored click counts from the image's corner, one in a batch is its pixel's index.
    points = ((prompt.point_coords - 0.5) @ linear.T + shift).astype(np.float32)
    box = prompt.box_xyxy
    if box is not None:
        corners = (box.reshape(2, 2) - 0.5) @ linear.T + shift + 0.5
        box = np.concatenate([corners.min(axis=0), corners.max(axis=0)]).astype(np.float32)
    everything = np.concatenate([points, np.zeros((0, 2)) if box is None else box.reshape(2, 2)])
    if (everything < 0).any() or (everything > size).any():
        return None
    return Prompt(points, prompt.point_labels, box)


# --- what the frozen trunk answered ---


class FeatureCache:
    """The trunk's last two stages for every view, computed once and kept in files as fp16."""

    def __init__(self, backbone: nn.Module, folder: Path) -> None:
        """Take a frozen trunk and the folder of its answers; a run that goes on finds them there.

        Args:
            backbone: In evaluation mode.
            folder: One file per view; emptied by nobody but the run's owner.
        """
        self._backbone, self._folder = backbone, folder
        folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def get(self, key: str, image: Callable[[], np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """stage2 [C2, S/16, S/16] and stage3 [C3, S/32, S/32], both fp16.

        Args:
            key: Name of the view.
            image: Makes its pixels, [S, S, 3] uint8, if they are needed.
        """
        from safetensors.torch import load_file, save

        path = self._folder / f"{key}.safetensors"
        if path.exists():
            try:
                kept = load_file(path)
                return kept["stage2"], kept["stage3"]
            except Exception:  # torn by a power cut: of whatever kind, it is computed again
                path.unlink(missing_ok=True)
        pixels = torch.from_numpy(np.ascontiguousarray(image().transpose(2, 0, 1)))[None]
        device = next(self._backbone.parameters()).device
        _, _, stage2, stage3 = stage_outputs(self._backbone, normalise(pixels.to(device)))
        kept = {
            "stage2": stage2[0].half().contiguous().cpu(),
            "stage3": stage3[0].half().contiguous().cpu(),
        }
        write_whole(path, save(kept))
        return kept["stage2"], kept["stage3"]


# --- batches ---


@dataclass(frozen=True, kw_only=True)
class ProjectBatch(Batch):
    """A batch whose images the frozen trunk has seen."""

    stage2: torch.Tensor
    """[I, C2, S/16, S/16] fp16."""
    stage3: torch.Tensor
    """[I, C3, S/32, S/32] fp16."""
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
        self, config: ProjectStageConfig, images: Sequence[ProjectImage], features: FeatureCache
    ) -> None:
        """Take what is drawn from.

        Args:
            config: The recipe, its phase at the base model's size.
            images: Of the training tasks; at least one.
            features: Of the base model's trunk.

        Raises:
            RunError: There is no image.
        """
        if not images:
            raise RunError(
                "There is no annotated region to learn from. Label more tasks and train again."
            )
        self.config, self.images, self.features = config, images, features
        self.size = config.phases[0].size

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
        regions = self._regions(rng, image, view, prompts)
        if not regions:
            return None
        everywhere = np.full(image.image.shape[:2], 255, np.uint8)
        valid = look_through(view, everywhere, size)
        outside = self._outside(rng, image, view, valid)
        boxes, points, masks, from_base = [], [], [], []
        for turn in range(prompts):
            if outside is not None and rng.random() < self.config.outside_share:
                box, point = _prompts_outside(rng, outside)
                masks.append(np.zeros((size, size), np.uint8))
            else:
                index, mask = regions[turn % len(regions)]
                box, point = self._first_prompts(rng, mask, image.stored[index], view)
                masks.append(mask)
            from_base.append(not masks[-1].any())
            boxes.append(box)
            points.append(point)

        def pixels() -> np.ndarray:
            return look_through(view, image.image, size, border=PADDING_RGB)

        key = f"image-{image.image_id}-{number}"
        return Asked(
            Crop(pixels(), np.stack(masks), valid),
            np.stack(masks),
            np.stack(boxes),
            np.stack(points),
            np.array(from_base),
            self.features.get(key, pixels),
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
            stage2=torch.stack([a.features[0] for a in asked]),
            stage3=torch.stack([a.features[1] for a in asked]),
            from_base=torch.from_numpy(np.stack([a.from_base for a in asked])),
        )

    def _regions(
        self, rng: np.random.Generator, image: ProjectImage, view: View, most: int
    ) -> list[tuple[int, np.ndarray]]:
        """Up to ``most`` regions that the view shows, in random order, with masks [S, S] uint8."""
        corners = image.boxes_xyxy.reshape(-1, 2) @ view.matrix[:, :2].T + view.matrix[:, 2]
        corners = np.sort(corners.reshape(-1, 2, 2), axis=1)  # a flip exchanges left and right
        whole = np.prod(corners[:, 1] - corners[:, 0], axis=1)
        inside = np.clip(corners, 0, self.size)
        share = np.prod(inside[:, 1] - inside[:, 0], axis=1) / np.maximum(whole, 1e-6)
        shown: list[tuple[int, np.ndarray]] = []
        for index in rng.permutation(np.flatnonzero(share >= MIN_SEEN)):
            full = coco_mask.decode(image.coco_rles[index]) * 255
            mask = look_through(view, full, self.size)
            mask = np.where(mask > 127, 255, 0).astype(np.uint8)
            if np.count_nonzero(mask) >= MIN_PX:
                shown.append((int(index), mask))
            if len(shown) == most:
                break
        return shown

    def _outside(
        self, rng: np.random.Generator, image: ProjectImage, view: View, valid: np.ndarray
    ) -> np.ndarray | None:
        """Pixels of the view that no region covers, [S, S] bool; None where there are few."""
        if self.config.outside_share == 0:
            return None
        union = coco_mask.decode(coco_mask.merge(list(image.coco_rles))) * 255
        free = (look_through(view, union, self.size) == 0) & (valid > 127)
        return free if free.mean() > 0.05 else None

    def _first_prompts(
        self, rng: np.random.Generator, mask: np.ndarray, stored: Prompt | None, view: View
    ) -> tuple[np.ndarray, np.ndarray]:
        """A box and a click for a region: the annotator's own now and then, else drawn."""
        box = draw_box(rng, mask, jitter=self.config.box_jitter)
        point = draw_point(rng, mask)
        if stored is None or rng.random() >= self.config.stored_share:
            return box, point
        theirs = seen_through(view, stored, self.size)
        if theirs is None:
            return box, point
        clicks = theirs.point_coords[theirs.point_labels == 1]
        return (
            box if theirs.box_xyxy is None else theirs.box_xyxy,
            clicks[0] if len(clicks) else point,
        )


def _prompts_outside(
    rng: np.random.Generator, outside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A click on a pixel that nobody annotated, and a box around it."""
    size = outside.shape[0]
    rows, columns = np.nonzero(outside)
    index = rng.integers(len(rows))
    point = np.array([columns[index], rows[index]], np.float32)
    sides = size * np.exp(rng.uniform(np.log(0.05), np.log(0.4), 2))
    corner = point - rng.uniform(0.2, 0.8, 2) * sides
    box = np.clip(np.concatenate([corner, corner + sides]), 0, size).astype(np.float32)
    return box, point


def _repeated(rng: np.random.Generator, count: int, wanted: int) -> np.ndarray:
    """``wanted`` indices below ``count``: all of them as evenly as possible, in random order."""
    rounds = -(-wanted // max(count, 1)) if count else 0
    order = [rng.permutation(count) for _ in range(rounds)]
    return np.concatenate(order)[:wanted] if order else np.zeros(0, np.int64)


def replay_scene(number: int, size: int, photos: Sequence[np.ndarray] = ()) -> Scene:
    """A drawn scene by its number, for ever the same."""
    return procedural_scene(np.random.default_rng((REPLAY_SEED, number)), size, photos)
