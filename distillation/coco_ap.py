"""Mask AP from a detector's boxes: how good the masks are where nobody has clicked.

Every box of the detector is answered with a mask, which keeps the detector's class and score;
pycocotools compares them with the annotations. The paper does so with the boxes of ViTDet-H (COCO)
and Detic (LVIS); its repository has no script for it.

LVIS is annotated category by category, so that a detection says nothing where its category was not
looked for; and not every object of a category is always annotated, so that a detection without
partner is then no mistake. The first rule is ``_that_count``, the second ``_forgiving_eval``, both
as in LVIS's own evaluation.

Paper: EdgeSAM (arXiv 2312.06660), section 4.2 and table 4; LVIS (arXiv 1908.03195), section 3.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from distillation.click_rounds import Answerer, ask, box_prompt
from distillation.coco_masks import mask_to_coco_rle
from distillation.instances import AnnotatedImage, AnnotatedSet
from edgesam_core.arrays import BoxXYXY, SizeHW
from edgesam_core.errors import PromptError, RunError
from edgesam_core.geometry import clip_box

LVIS_DETECTIONS = 300
"""The best so many detections of an image count in LVIS; COCO takes 100 of each category."""

FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}
"""LVIS's rare, common and frequent categories."""


@dataclass(frozen=True)
class Detection:
    """One box of a detector."""

    category_id: int
    box_xyxy: BoxXYXY
    """[4] float32 pixels of the original image."""
    score: float


def load_detections(file: Path, annotated: AnnotatedSet) -> dict[int, list[Detection]]:
    """A detector's boxes by image id, best first.

    Args:
        file: JSON in COCO's result format: a list of ``image_id``, ``category_id``, ``bbox``
            (x, y, width, height in pixels) and ``score``.
        annotated: The set that was detected on.

    Raises:
        RunError: It is no such file, or made for other images or categories.
    """
    image_ids = {image.image_id for image in annotated.images}
    of_image: dict[int, list[Detection]] = defaultdict(list)
    try:
        for place, entry in enumerate(json.loads(file.read_bytes())):
            x, y, width, height = (float(value) for value in entry["bbox"])
            box_xyxy = np.array([x, y, x + width, y + height], np.float32)
            image_id, category_id = entry["image_id"], entry["category_id"]
            if image_id not in image_ids or category_id not in annotated.categories:
                raise RunError(
                    f"{file}: box number {place} is of image {image_id} and category "
                    f"{category_id}, of which {annotated.file} lacks one."
                )
            of_image[image_id].append(Detection(category_id, box_xyxy, float(entry["score"])))
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise RunError(
            f"{file}: is no list of boxes in COCO's result format ({type(exc).__name__}: {exc})."
        ) from exc
    return {
        image_id: sorted(detections, key=lambda detection: -detection.score)
        for image_id, detections in of_image.items()
    }


def mask_ap(
    answerer: Answerer,
    annotated: AnnotatedSet,
    images: Sequence[AnnotatedImage],
    detections: dict[int, list[Detection]],
) -> dict[str, float]:
    """AP of the masks that answer a detector's boxes, in per cent.

    Args:
        answerer: Who is asked.
        annotated: The set; its categories count.
        images: Those of its images that count, with all their objects, crowds too.
        detections: From ``load_detections``.

    Returns:
        AP, AP50, AP75, APs, APm, APl, and for LVIS APr, APc, APf; NaN where there is no object.
        Sizes are COCO's: small under 32 x 32 pixels, large from 96 x 96.

    Raises:
        RunError: An image that cannot be used, by name.
    """
    results = []
    for image in images:
        usable = [
            detection
            for detection in _that_count(image, detections.get(image.image_id, []))
            if _is_on_image(detection.box_xyxy, image.original_size_hw)
        ]
        if not usable:
            continue
        embedding = answerer.embed(image.read())
        turns = ask(answerer, embedding, [box_prompt(detection.box_xyxy) for detection in usable])
        results += [
            {
                "image_id": image.image_id,
                "category_id": detection.category_id,
                "segmentation": mask_to_coco_rle(turn.mask),
                "score": detection.score,
            }
            for detection, turn in zip(usable, turns, strict=True)
        ]
    return average_precision(annotated, images, results)


def average_precision(
    annotated: AnnotatedSet, images: Sequence[AnnotatedImage], results: list[dict[str, Any]]
) -> dict[str, float]:
    """COCO's (or LVIS's) AP of masks, in per cent, see ``mask_ap``.

    Args:
        annotated: The set.
        images: Those of its images that count.
        results: COCO's result format with ``segmentation``.
    """
    is_lvis = any(image.searched_category_ids is not None for image in images)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of every step
        truth = COCO()
        truth.dataset = _as_coco(annotated, images)
        truth.createIndex()
        # pycocotools writes into what it is given.
        predicted = truth.loadRes([dict(entry) for entry in results]) if results else COCO()
        measured = (_forgiving_eval(images) if is_lvis else COCOeval)(truth, predicted, "segm")
        measured.params.imgIds = [image.image_id for image in images]
        measured.params.catIds = sorted(annotated.categories)
        if is_lvis:
            measured.params.maxDets = [LVIS_DETECTIONS]
        measured.evaluate()
        measured.accumulate()
    # [T IoU thresholds, R recalls, K categories, A sizes], with the most detections allowed.
    precision = measured.eval["precision"][..., -1]
    scores = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[:1, ..., 0]),
        "AP75": _mean(precision[5:6, ..., 0]),
        "APs": _mean(precision[..., 1]),
        "APm": _mean(precision[..., 2]),
        "APl": _mean(precision[..., 3]),
    }
    if is_lvis:
        frequencies = [annotated.categories[k].get("frequency") for k in measured.params.catIds]
        for letter, name in FREQUENCIES.items():
            is_such = np.array([frequency == letter for frequency in frequencies])
            scores[name] = _mean(precision[:, :, is_such, 0])
    return scores


def ap_to_markdown(scores: dict[str, float], method: str) -> str:
    """Head and one row."""
    cells = " | ".join(f"{score:.1f}" for score in scores.values())
    return (
        f"| mask AP, % | {' | '.join(scores)} |\n|---|{'---:|' * len(scores)}\n"
        f"| {method} | {cells} |\n"
    )


def _forgiving_eval(images: Sequence[AnnotatedImage]) -> type[Any]:
    """COCOeval that forgives detections without partner where LVIS does not annotate every one."""
    incomplete = {
        (image.image_id, category_id)
        for image in images
        for category_id in image.incomplete_category_ids
    }

    class FederatedEval(COCOeval):  # type: ignore[misc]
        def evaluateImg(self, imgId: int, catId: int, aRng: Any, maxDet: int) -> Any:
            found = super().evaluateImg(imgId, catId, aRng, maxDet)
            if found is not None and (imgId, catId) in incomplete:
                found["dtIgnore"] = np.logical_or(found["dtIgnore"], found["dtMatches"] == 0)
            return found

    return FederatedEval


def _that_count(image: AnnotatedImage, detections: list[Detection]) -> list[Detection]:
    searched = image.searched_category_ids
    if searched is None:
        return detections
    return [d for d in detections[:LVIS_DETECTIONS] if d.category_id in searched]


def _is_on_image(box_xyxy: BoxXYXY, original_size_hw: SizeHW) -> bool:
    try:
        clip_box(box_xyxy, original_size_hw)
    except PromptError:
        return False
    return True


def _as_coco(annotated: AnnotatedSet, images: Sequence[AnnotatedImage]) -> dict[str, Any]:
    """The images that count, in the words of COCO's file."""
    annotations = [
        {
            "id": instance.annotation_id,
            "image_id": image.image_id,
            "category_id": instance.category_id,
            "iscrowd": int(instance.is_crowd),
            "area": instance.area_px,
            "segmentation": instance.segmentation,
        }
        for image in images
        for instance in image.instances
    ]
    sizes = [
        {
            "id": image.image_id,
            "height": image.original_size_hw[0],
            "width": image.original_size_hw[1],
        }
        for image in images
    ]
    return {
        "info": {},
        "images": sizes,
        "annotations": annotations,
        "categories": [{"id": category_id} for category_id in annotated.categories],
    }


def _mean(precision: Any) -> float:
    """Mean in per cent over all that was measured (-1 marks the rest); NaN if nothing was."""
    measured = precision[precision > -1]
    return round(100 * float(measured.mean()), 2) if measured.size else float("nan")
