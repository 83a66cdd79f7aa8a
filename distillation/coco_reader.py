"""The content of one COCO or LVIS file as images and objects, and what is wrong with it.

LVIS differs from COCO in that images are named by ``coco_url``, that there are no crowds, and that
only some categories were looked for in each image (``neg_category_ids``). Masks and images stay
undecoded: ``coco.py`` looks into those.

Source:
    COCO's data format, cocodataset.org/#format-data; LVIS (arXiv 1908.03195), lvisdataset.org.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from distillation.instances import AnnotatedImage, AnnotatedSet, BoxXYWH, Finding, Instance
from edgesam_core.arrays import SizeHW
from edgesam_core.errors import PromptError
from edgesam_core.geometry import clip_box


class CocoReader:
    """Reads the records of one file and keeps what is wrong with them."""

    def __init__(self, name: str, file: Path, images_dir: Path) -> None:
        """Begin with no findings; the arguments are those of ``coco.load_set``."""
        self._name, self._file, self._images_dir = name, file, images_dir
        self._findings: list[Finding] = []

    def read(self, content: Any) -> AnnotatedSet:
        """All that can be used of a file's content, and what is wrong with the rest."""
        categories = self._by_id("category", self._records(content, "categories", optional=True))
        records = self._by_id("image", self._records(content, "images"))
        sizes = {image_id: self._size(image_id, record) for image_id, record in records.items()}
        of_image: dict[int, list[Instance]] = defaultdict(list)
        annotations = self._by_id("annotation", self._records(content, "annotations"))
        for annotation_id, record in sorted(annotations.items()):
            image_id, category_id = record.get("image_id"), record.get("category_id")
            if type(image_id) is not int or image_id not in records:
                self._report(f"annotation {annotation_id} is of an unknown image, {image_id}")
            elif categories and (type(category_id) is not int or category_id not in categories):
                self._report(f"annotation {annotation_id} is of an unknown category, {category_id}")
            elif (size_hw := sizes[image_id]) is not None:
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
            name = "/".join(record["coco_url"].split("/")[-2:])  # val2017/1.jpg
        if not isinstance(name, str) or not name:
            self._report(f"image {image_id} has neither file_name nor coco_url")
            return None
        flat = self._images_dir / Path(name).name
        nested = self._images_dir / name
        return flat if flat.exists() and not nested.exists() else nested

    def _instance(self, annotation_id: int, record: dict[str, Any], size_hw: SizeHW) -> Instance:
        area, category_id = record.get("area"), record.get("category_id")
        return Instance(
            annotation_id,
            size_hw,
            record.get("segmentation"),
            category_id if type(category_id) is int else None,
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
            present = frozenset(i.category_id for i in instances if i.category_id is not None)
            searched = present | self._ids(image_id, record, "neg_category_ids")
        return AnnotatedImage(
            self._name,
            image_id,
            path,
            size_hw,
            tuple(instances),
            searched,
            self._ids(image_id, record, "not_exhaustive_category_ids"),
        )

    def _ids(self, image_id: int, record: dict[str, Any], key: str) -> frozenset[int]:
        """LVIS's list of category ids under a key; empty where there is none."""
        ids = record.get(key, [])
        if isinstance(ids, list) and all(type(number) is int for number in ids):
            return frozenset(ids)
        self._report(f"image {image_id} has {key} that are no list of ids")
        return frozenset()

    def _report_unused(
        self, categories: dict[int, dict[str, Any]], images: Iterable[AnnotatedImage]
    ) -> None:
        used = Counter(i.category_id for image in images for i in image.instances)
        for category_id, category in categories.items():
            if not used[category_id]:
                name = category.get("name", "without a name")
                self._report(f"category {category_id} ({name}) has no images", is_warning=True)
