"""Images with masks to measure on: COCO-style annotations, read set by set.

A set is a folder with ``annotations.json`` and ``images/``; a folder of such folders is several
sets. Which objects of an image count, and which images belong to a half, is part of the measuring
protocol, so that two runs are compared on the same. Nothing is trained from here: that is
``data.py``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from edgesam_core.arrays import BoxXYXY, ImageRGB, Mask, SizeHW
from edgesam_core.errors import ImageError, RunError
from edgesam_core.image import read_image

MIN_AREA_PX = 64
"""Smaller masks are not asked for: their IoU is decided by two or three pixels of the border."""

Half = Literal["even", "odd", "all"]
"""Of the image ids: choose between runs on the even ones, report the odd ones."""


@dataclass(frozen=True)
class Instance:
    """One annotated object."""

    annotation_id: int
    box_xyxy: BoxXYXY
    """[4] float32 pixel edges, as annotated."""
    original_size_hw: SizeHW
    segmentation: Any
    """As in the file: compressed or plain COCO RLE, or polygons."""

    def mask(self) -> Mask:
        """The annotated mask, [H, W] bool.

        Raises:
            RunError: The mask has another size than the image.
        """
        height, width = self.original_size_hw
        coco_rle = self.segmentation
        if isinstance(coco_rle, list):  # polygons, one or several
            coco_rle = coco_mask.merge(coco_mask.frPyObjects(coco_rle, height, width))
        elif isinstance(coco_rle["counts"], list):
            coco_rle = coco_mask.frPyObjects(coco_rle, height, width)
        mask: Mask = coco_mask.decode(coco_rle).astype(np.bool_)
        if mask.shape != self.original_size_hw:
            raise RunError(
                f"The mask of annotation {self.annotation_id} has the size {mask.shape}, its image "
                f"{self.original_size_hw}. Correct the annotations."
            )
        return mask


@dataclass(frozen=True)
class AnnotatedImage:
    """One image and the objects in it that are asked for."""

    set_name: str
    image_id: int
    path: Path
    instances: tuple[Instance, ...]

    def read(self) -> ImageRGB:
        """The pixels, read as the service reads them.

        Raises:
            RunError: The file is missing, unreadable, or of another size than the annotations say.
        """
        try:
            image = read_image(self.path.read_bytes())
        except (OSError, ImageError) as exc:
            raise RunError(f"The image {self.path} could not be read: {exc}") from exc
        if any(instance.original_size_hw != image.shape[:2] for instance in self.instances):
            raise RunError(f"The image {self.path} has another size than its annotations say.")
        return image


def find_sets(dataset: Path, images_dir: Path | None = None) -> list[tuple[str, Path, Path]]:
    """Every set below a path: (name, annotation file, folder with its images).

    Args:
        dataset: An annotation file, a set's folder, or a folder of sets.
        images_dir: Where the images lie, if not in ``images/`` beside the annotation file.

    Raises:
        RunError: There is none.
    """
    if dataset.is_file():
        files = [dataset]
    else:
        files = sorted([*dataset.glob("annotations.json"), *dataset.glob("*/annotations.json")])
    if not files:
        raise RunError(f"No annotations.json in {dataset} or in the folders in it.")
    if images_dir is not None and len(files) > 1:
        raise RunError(f"{dataset} holds {len(files)} sets: name one of them, or no image folder.")
    return [
        (file.parent.resolve().name, file, images_dir or file.parent / "images") for file in files
    ]


def annotated_images(
    dataset: Path,
    images_dir: Path | None = None,
    *,
    half: Half = "all",
    per_image: int = 4,
    limit: int | None = None,
) -> Iterator[AnnotatedImage]:
    """The images to measure on, in the order of sets and ids.

    Args:
        dataset: See ``find_sets``.
        images_dir: See ``find_sets``.
        half: Which image ids.
        per_image: Objects of an image that are asked for: those with the lowest annotation ids
            among all of at least ``MIN_AREA_PX`` that are no crowd. An image without any is left
            out.
        limit: At most so many images of each set.
    """
    for set_name, annotation_file, folder in find_sets(dataset, images_dir):
        coco = json.loads(annotation_file.read_text())
        of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in sorted(coco["annotations"], key=lambda a: a["id"]):
            if annotation["area"] >= MIN_AREA_PX and not annotation.get("iscrowd", 0):
                of_image[annotation["image_id"]].append(annotation)
        taken = 0
        for image in sorted(coco["images"], key=lambda i: i["id"]):
            chosen = of_image[image["id"]][:per_image]
            is_in_half = half == "all" or (image["id"] % 2 == 1) == (half == "odd")
            if not chosen or not is_in_half or taken == limit:
                continue
            taken += 1
            size_hw = (image["height"], image["width"])
            instances = tuple(_instance(annotation, size_hw) for annotation in chosen)
            yield AnnotatedImage(set_name, image["id"], folder / image["file_name"], instances)


def _instance(annotation: dict[str, Any], original_size_hw: SizeHW) -> Instance:
    x, y, width, height = annotation["bbox"]
    box_xyxy = np.array([x, y, x + width, y + height], np.float32)
    return Instance(annotation["id"], box_xyxy, original_size_hw, annotation["segmentation"])
