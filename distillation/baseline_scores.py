"""Scores of the baselines, remembered on disk: they never change, and GrabCut takes seconds a mask.

A line of the file is one object: a hash of everything that the scores depend on, and the scores.
Lines are only appended, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from distillation.baselines import (
    GRABCUT_ITERATIONS,
    PROBABLE_RADIUS,
    SURE_RADIUS,
    box_mask,
    ellipse_mask,
    grabcut_from_box,
    grabcut_from_click,
)
from distillation.instances import AnnotatedImage
from distillation.metrics import Score, mask_iou
from distillation.prompt_points import centre_click
from distillation.run_folder import append_line, make_folder, read_lines
from edgesam_core.arrays import BoxXYXY, ImageRGB, Mask

_RECIPE = ("1", GRABCUT_ITERATIONS, SURE_RADIUS, PROBABLE_RADIUS)


class BaselineScores:
    """Measures the baselines, or remembers them."""

    def __init__(self, cache: Path | None = None) -> None:
        """Read what is known already.

        Args:
            cache: File to read and append to; None keeps nothing.

        Raises:
            RunError: Its folder cannot be made.
        """
        self._cache = cache
        self._known: dict[str, dict[str, float]] = {}
        if cache is not None:
            make_folder(cache.parent)
            self._known |= {entry["key"]: entry["ious"] for entry in read_lines(cache)}

    def measure(
        self, annotated: AnnotatedImage, image: ImageRGB, truths: Sequence[Mask]
    ) -> Iterator[Score]:
        """Scores of box, ellipse and GrabCut for every object of an image.

        Args:
            annotated: The image and its objects.
            image: Its pixels.
            truths: One annotated mask per object.
        """
        pixels = hashlib.sha256(image.tobytes())
        for instance, truth in zip(annotated.instances, truths, strict=True):
            key = pixels.copy()
            key.update(truth.tobytes() + instance.box_xyxy.tobytes() + repr(_RECIPE).encode())
            for name, iou in self._ious(key.hexdigest(), image, truth, instance.box_xyxy).items():
                method, column = name.split("/")
                yield Score(
                    annotated.set_name,
                    annotated.image_id,
                    instance.annotation_id,
                    int(truth.sum()),
                    truth.size,
                    method,
                    column,
                    iou,
                )

    def _ious(self, key: str, image: ImageRGB, truth: Mask, box_xyxy: BoxXYXY) -> dict[str, float]:
        if key not in self._known:
            x, y, _ = centre_click(truth)
            size_hw = (truth.shape[0], truth.shape[1])
            masks = {
                "the box itself/box": box_mask(box_xyxy, size_hw),
                "ellipse in the box/box": ellipse_mask(box_xyxy, size_hw),
                "GrabCut/box": grabcut_from_box(image, box_xyxy),
                "GrabCut/click": grabcut_from_click(image, (x, y)),
            }
            self._known[key] = {name: mask_iou(mask, truth) for name, mask in masks.items()}
            if self._cache is not None:
                append_line(self._cache, {"key": key, "ious": self._known[key]})
        return self._known[key]
