"""Which images and objects are measured on.

That choice is part of the measuring protocol, so that two runs are compared on the same. Files are
read by ``coco.py``; nothing is trained from here, that is ``data.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

from distillation.coco import find_sets, load_set, refuse
from distillation.instances import AnnotatedImage, AnnotatedSet

MIN_AREA_PX = 64
"""Smaller masks are not asked for: their IoU is decided by two or three pixels of the border."""

Half = Literal["even", "odd", "all"]
"""Of the image ids: choose between runs on the even ones, report the odd ones."""


def annotated_images(
    dataset: Path,
    images_dir: Path | None = None,
    *,
    half: Half = "all",
    per_image: int | None = 4,
    limit: int | None = None,
    min_area_px: int = MIN_AREA_PX,
) -> Iterator[AnnotatedImage]:
    """The images to measure on, in the order of sets and ids, each with the objects asked for.

    Args:
        dataset: See ``coco.find_sets``.
        images_dir: See ``coco.find_sets``.
        half: See ``choose_images``.
        per_image: See ``choose_images``.
        limit: See ``choose_images``.
        min_area_px: See ``choose_images``.

    Raises:
        RunError: There is no set, or something is wrong with an annotation file.
    """
    for where in find_sets(dataset, images_dir):
        annotated = load_set(*where)
        refuse(annotated.findings)
        yield from choose_images(
            annotated, half=half, per_image=per_image, limit=limit, min_area_px=min_area_px
        )


def choose_images(
    annotated: AnnotatedSet,
    *,
    half: Half = "all",
    per_image: int | None = 4,
    limit: int | None = None,
    min_area_px: int = MIN_AREA_PX,
) -> Iterator[AnnotatedImage]:
    """The images of one set to measure on, in the order of their ids.

    Args:
        annotated: All of it.
        half: Which image ids.
        per_image: Objects of an image that are asked for: those with the lowest annotation ids
            among all of sufficient area that are no crowd; None means all of them. An image
            without any is left out.
        limit: At most so many images.
        min_area_px: Objects of a smaller annotated area are not asked for.
    """
    chosen = (
        replace(image, instances=fit[:per_image])
        for image in images_of_half(annotated, half=half)
        if (fit := tuple(i for i in image.instances if i.area_px >= min_area_px and not i.is_crowd))
    )
    yield from islice(chosen, limit)


def images_of_half(
    annotated: AnnotatedSet, *, half: Half = "all", limit: int | None = None
) -> Iterator[AnnotatedImage]:
    """All images of one half with all their objects, in the order of their ids."""
    remainder = {"even": (0,), "odd": (1,), "all": (0, 1)}[half]
    yield from islice((i for i in annotated.images if i.image_id % 2 in remainder), limit)
