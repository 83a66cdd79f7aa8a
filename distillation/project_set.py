"""One half of a snapshot: images, labels, tasks, and the prompts that made the regions.

Place: between a snapshot folder (COCO, read by ``coco.py``) and ``project_views.py``, which looks
at the images in different ways. What a prompt says of its mask is ``honoured.py``'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from distillation import coco
from distillation.coco_masks import mask_to_coco_rle
from distillation.instances import AnnotatedImage
from edgesam_core.decode import Prompt
from edgesam_core.errors import PromptError


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
