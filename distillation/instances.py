"""An annotated image and the objects in it, as they stand in a data set's file.

Made by ``coco.py``; masks and pixels are decoded when asked for, so that a large set fits in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distillation.coco_masks import segmentation_to_mask
from edgesam_core.arrays import BoxXYXY, ImageRGB, Mask, SizeHW
from edgesam_core.errors import ImageError, RunError
from edgesam_core.image import read_image
from edgesam_core.windowed_mask import WindowedMask

BoxXYWH = tuple[float, float, float, float]
"""COCO's box: left, top, width, height in pixels."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with a data set."""

    file: Path
    """The image, or the annotation file."""
    reason: str
    is_warning: bool = False
    """Worth knowing, no reason to stop."""

    def __str__(self) -> str:
        """File and reason."""
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class Instance:
    """One annotated object."""

    annotation_id: int
    original_size_hw: SizeHW
    segmentation: Any
    """As in the file, see ``coco_masks.py``."""
    category_id: int | None = None
    is_crowd: bool = False
    annotated_box_xywh: BoxXYWH | None = None
    annotated_area_px: float | None = None

    def mask(self) -> Mask:
        """The annotated mask, [H, W] bool.

        Raises:
            RunError: It cannot be read, or has another size than the image.
        """
        try:
            return segmentation_to_mask(self.segmentation, self.original_size_hw)
        except ValueError as exc:
            raise RunError(
                f"The mask of annotation {self.annotation_id} {exc}. Correct the annotations."
            ) from exc

    @cached_property
    def box_xyxy(self) -> BoxXYXY:
        """[4] float32 pixel edges, as annotated; the mask's own box where the file has none."""
        if self.annotated_box_xywh is None:
            box = WindowedMask.from_full(self.mask()).box_xyxy
            return np.array(box or (0, 0, 0, 0), np.float32)
        x, y, width, height = self.annotated_box_xywh
        return np.array([x, y, x + width, y + height], np.float32)

    @cached_property
    def area_px(self) -> float:
        """As annotated; the mask's own where the file has none."""
        if self.annotated_area_px is None:
            return float(np.count_nonzero(self.mask()))
        return self.annotated_area_px


@dataclass(frozen=True)
class AnnotatedImage:
    """One image and objects in it."""

    set_name: str
    image_id: int
    path: Path
    original_size_hw: SizeHW
    instances: tuple[Instance, ...]
    searched_category_ids: frozenset[int] | None = None
    """LVIS: categories that were looked for in this image; None where all were."""
    incomplete_category_ids: frozenset[int] = frozenset()
    """LVIS: categories of which not every object of this image is annotated."""

    def read(self) -> ImageRGB:
        """The pixels, read as the service reads them, [H, W, 3] uint8.

        Raises:
            RunError: The file is missing, unreadable, or of another size than the annotations say.
        """
        try:
            return self.read_pixels()
        except ValueError as exc:
            raise RunError(f"The image {self.path} {exc}.") from exc

    def read_pixels(self) -> ImageRGB:
        """As ``read``, for callers that collect what is wrong.

        Raises:
            ValueError: What is wrong, as the second half of a sentence about the file.
        """
        try:
            image = read_image(self.path.read_bytes())
        except FileNotFoundError:
            raise ValueError("is missing") from None
        except (OSError, ImageError) as exc:
            raise ValueError(f"could not be read: {str(exc).rstrip('.')}") from exc
        if image.shape[:2] != self.original_size_hw:
            raise ValueError(
                f"has the size (height, width) {list(image.shape[:2])}, its annotations say "
                f"{list(self.original_size_hw)}"
            )
        return image


@dataclass(frozen=True)
class AnnotatedSet:
    """All of one annotation file."""

    name: str
    file: Path
    images: tuple[AnnotatedImage, ...]
    """In the order of their ids."""
    categories: dict[int, dict[str, Any]]
    """By id, as in the file; empty where objects have no category."""
    findings: tuple[Finding, ...]
    """What is wrong with the file itself; images and masks are looked at by ``decode_image``."""
