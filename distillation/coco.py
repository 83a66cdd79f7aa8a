"""Images with masks from COCO and LVIS files: the one reader, for training and for measuring.

    python -m distillation.coco DATASET [IMAGES]        says what is wrong with a data set

``DATASET`` is an annotation file, a set (a folder with ``annotations.json`` and ``images/``) or a
folder of sets. The JSON is read once; images and masks are decoded one by one, when asked for.
What is wrong is never an exception halfway: ``check`` finds all of it, ``refuse`` turns it into one
sentence before any work is done. Which images and objects are used is decided elsewhere
(``data.py`` trains, ``annotated_images.py`` measures).

LVIS differs from COCO in that images are named by ``coco_url``, that there are no crowds, and that
only some categories were looked for in each image (``neg_category_ids``).

Source:
    COCO's data format, cocodataset.org/#format-data; LVIS (arXiv 1908.03195), lvisdataset.org.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from distillation.coco_masks import segmentation_to_mask
from distillation.instances import AnnotatedImage, AnnotatedSet, BoxXYWH, Finding, Instance
from edgesam_core.arrays import ImageRGB, Mask, SizeHW
from edgesam_core.errors import EdgeSamError, PromptError, RunError
from edgesam_core.geometry import clip_box

logger = logging.getLogger(__name__)

NAMED_FINDINGS = 4
"""So many findings stand in the sentence of an error; the command lists all."""


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
    return [(_set_name(file), file, images_dir or file.parent / "images") for file in files]


def _set_name(file: Path) -> str:
    return file.parent.resolve().name if file.name == "annotations.json" else file.stem


def load_set(name: str, file: Path, images_dir: Path) -> AnnotatedSet:
    """Read one annotation file; what is wrong with it is among the findings.

    Args:
        name: What the set is called in tables.
        file: COCO or LVIS JSON.
        images_dir: Where the images lie. A name with folders in it is looked for in those folders
            first, then directly in ``images_dir``.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return AnnotatedSet(name, file, (), {}, (Finding(file, "the file is missing"),))
    except (OSError, ValueError) as exc:
        return AnnotatedSet(name, file, (), {}, (Finding(file, f"is not JSON: {exc}"),))
    return _Reader(name, file, images_dir).read(content)


class _Reader:
    """Reads the records of one file and keeps what is wrong with them."""

    def __init__(self, name: str, file: Path, images_dir: Path) -> None:
        self._name, self._file, self._images_dir = name, file, images_dir
        self._findings: list[Finding] = []

    def read(self, content: Any) -> AnnotatedSet:
        categories = self._by_id("category", self._records(content, "categories", optional=True))
        records = self._by_id("image", self._records(content, "images"))
        sizes = {image_id: self._size(image_id, record) for image_id, record in records.items()}
        of_image: dict[int, list[Instance]] = defaultdict(list)
        annotations = self._by_id("annotation", self._records(content, "annotations"))
        for annotation_id, record in sorted(annotations.items()):
            image_id = record.get("image_id")
            size_hw = sizes.get(image_id) if isinstance(image_id, int) else None
            if image_id not in records:
                self._report(f"annotation {annotation_id} is of an unknown image, {image_id}")
            elif categories and record.get("category_id") not in categories:
                category_id = record.get("category_id")
                self._report(f"annotation {annotation_id} is of an unknown category, {category_id}")
            elif size_hw is not None:
                of_image[image_id].append(self._instance(annotation_id, record, size_hw))
        images = []
        for image_id, record in sorted(records.items()):
            path, size_hw = self._path(image_id, record), sizes[image_id]
            if path is not None and size_hw is not None:
                images.append(self._image(image_id, record, path, size_hw, of_image[image_id]))
        self._report_unused(categories, images)
        return AnnotatedSet(
            self._name, self._file, tuple(images), categories, tuple(self._findings)
        )

    def _report(self, reason: str, *, is_warning: bool = False) -> None:
        self._findings.append(Finding(self._file, reason, is_warning))

    def _records(self, content: Any, key: str, *, optional: bool = False) -> list[Any]:
        records = content.get(key) if isinstance(content, dict) else None
        if isinstance(records, list):
            return records
        if not (optional and records is None):
            self._report(f"has no list {key!r}: it is no COCO or LVIS file of objects")
        return []

    def _by_id(self, kind: str, records: list[Any]) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for place, record in enumerate(records):
            number = record.get("id") if isinstance(record, dict) else None
            if type(number) is not int:
                self._report(f"{kind} number {place} of the list has no whole number as its id")
            elif number in found:
                self._report(f"two have the same id: {kind} {number}")
            else:
                found[number] = record
        return found

    def _size(self, image_id: int, record: dict[str, Any]) -> SizeHW | None:
        height, width = record.get("height"), record.get("width")
        if type(height) is int and type(width) is int and height > 0 and width > 0:
            return height, width
        self._report(f"image {image_id} has no height and width")
        return None

    def _path(self, image_id: int, record: dict[str, Any]) -> Path | None:
        """Where the image lies: ``file_name``, or the end of LVIS's ``coco_url``."""
        name = record.get("file_name")
        if not name and isinstance(record.get("coco_url"), str):
            name = "/".join(Path(urlparse(record["coco_url"]).path).parts[-2:])  # val2017/1.jpg
        if not isinstance(name, str) or not name:
            self._report(f"image {image_id} has neither file_name nor coco_url")
            return None
        flat = self._images_dir / Path(name).name
        nested = self._images_dir / name
        return flat if flat.exists() and not nested.exists() else nested

    def _instance(self, annotation_id: int, record: dict[str, Any], size_hw: SizeHW) -> Instance:
        area = record.get("area")
        return Instance(
            annotation_id,
            size_hw,
            record.get("segmentation"),
            record.get("category_id"),
            bool(record.get("iscrowd", 0)),
            self._box(annotation_id, record.get("bbox"), size_hw),
            area if isinstance(area, int | float) else None,
        )

    def _box(self, annotation_id: int, box_xywh: Any, size_hw: SizeHW) -> BoxXYWH | None:
        """The annotated box; None, so that the mask's own is taken, where it cannot be used."""
        if box_xywh is None:
            return None
        try:
            x, y, width, height = (float(value) for value in box_xywh)
            clip_box(np.array([x, y, x + width, y + height], np.float32), size_hw)
        except (TypeError, ValueError, PromptError):
            reason = f"annotation {annotation_id} has a box that is none, or not on its image"
            self._report(f"{reason}: that of its mask is taken", is_warning=True)
            return None
        return x, y, width, height

    def _image(
        self,
        image_id: int,
        record: dict[str, Any],
        path: Path,
        size_hw: SizeHW,
        instances: list[Instance],
    ) -> AnnotatedImage:
        searched = None
        if "neg_category_ids" in record:
            present = {i.category_id for i in instances if i.category_id is not None}
            searched = frozenset(present | set(record["neg_category_ids"]))
        return AnnotatedImage(
            self._name,
            image_id,
            path,
            size_hw,
            tuple(instances),
            searched,
            frozenset(record.get("not_exhaustive_category_ids", ())),
        )

    def _report_unused(
        self, categories: dict[int, dict[str, Any]], images: Iterable[AnnotatedImage]
    ) -> None:
        used = Counter(i.category_id for image in images for i in image.instances)
        for category_id, category in categories.items():
            if not used[category_id]:
                name = category.get("name", "without a name")
                self._report(f"category {category_id} ({name}) has no images", is_warning=True)


def decode_image(image: AnnotatedImage) -> tuple[ImageRGB | None, list[Mask], list[Finding]]:
    """The pixels, the masks, and what is wrong with either.

    Returns:
        [H, W, 3] uint8, None if unreadable; a mask [H, W] bool for every object, if nothing is
        wrong; the findings.
    """
    pixels, masks, findings = None, [], []
    try:
        pixels = image.read_pixels()
    except ValueError as exc:
        findings.append(Finding(image.path, str(exc)))
    for instance in image.instances:
        who = f"the mask of annotation {instance.annotation_id}"
        try:
            masks.append(segmentation_to_mask(instance.segmentation, image.original_size_hw))
            if not masks[-1].any():
                findings.append(Finding(image.path, f"{who} is empty"))
        except ValueError as exc:
            findings.append(Finding(image.path, f"{who} {exc}"))
    return pixels, masks, findings


def check(dataset: Path, images_dir: Path | None = None) -> list[Finding]:
    """Everything that is wrong with a data set; every image and mask is decoded once.

    Args:
        dataset: See ``find_sets``.
        images_dir: See ``find_sets``.

    Raises:
        RunError: There is no data set.
    """
    findings: list[Finding] = []
    for where in find_sets(dataset, images_dir):
        annotated = load_set(*where)
        findings += annotated.findings
        for image in annotated.images:
            findings += decode_image(image)[2]
    return findings


def refuse(findings: Sequence[Finding]) -> None:
    """Stop if anything is wrong; warnings are only logged.

    Raises:
        RunError: The first findings by file and reason, and how many more there are.
    """
    for finding in findings:
        if finding.is_warning:
            logger.warning("%s", finding)
    errors = [finding for finding in findings if not finding.is_warning]
    if not errors:
        return
    named = "; ".join(str(finding).rstrip(".") for finding in errors[:NAMED_FINDINGS])
    more = f"; and {len(errors) - NAMED_FINDINGS} more" if len(errors) > NAMED_FINDINGS else ""
    raise RunError(f"The data set cannot be used. {named}{more}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when nothing is wrong (warnings may be)."""
    parser = argparse.ArgumentParser(
        prog="python -m distillation.coco", description="Say what is wrong with a data set."
    )
    parser.add_argument("dataset", type=Path, help="annotation file, set, or folder of sets")
    parser.add_argument("images", type=Path, nargs="?", help="where the images lie")
    options = parser.parse_args(arguments)
    try:
        findings = check(options.dataset, options.images)
    except EdgeSamError as exc:
        print(exc.sentence, file=sys.stderr)
        return 1
    for finding in findings:
        print("warning:" if finding.is_warning else "error:", finding)
    return int(any(not finding.is_warning for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
