"""A labelled task to its pictures with masks, or to the sentences that say why not.

Fetches each image of a task once, writes it beside the journal, and turns the annotations that
count into COCO annotations. One region that cannot be used costs neither its annotation nor its
task. The step between labelled_tasks.py and the journal of snapshot.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from backend.images import ImageLoader
from backend.label_config import LabelConfig
from backend.label_studio import LabelStudioClient
from backend.labelled_tasks import TOO_LARGE, choose
from backend.regions import Region, region_mask, regions_of
from backend.service import image_store
from backend.settings import Settings
from backend.snapshot_journal import LeftOut, Picture, TaskLine
from backend.store import open_store
from backend.task_pictures import image_uri
from edgesam_core.arrays import SizeHW
from edgesam_core.coco_rle import mask_to_coco_rle
from edgesam_core.errors import EdgeSamError, LabelConfigError, PromptError, UpstreamError
from edgesam_core.image import DEFAULT_MAX_PIXELS, read_image

NO_REGION = "The annotation has no region of an image."

KeepImage = Callable[[bytes, str], str]
"""Takes an image's bytes and its format's ending, gives the file's name."""


@dataclass
class Reading:
    """A task as it was read."""

    line: TaskLine
    outage: UpstreamError | None = None
    # why an image did not come, where that may pass


@dataclass(frozen=True)
class _Shown:
    """An image of a task, and its objects so far."""

    file_name: str
    size_hw: SizeHW
    objects: list[dict[str, Any]] = field(default_factory=list)


class TaskReader:
    """Reads tasks as Label Studio has them, one at a time."""

    def __init__(
        self, settings: Settings, label_studio: LabelStudioClient, config: LabelConfig
    ) -> None:
        """Fetches nothing yet.

        Args:
            settings: Which images may be fetched, and where they are kept.
            label_studio: Where its own images come from.
            config: The project's labelling config.
        """
        kept, shared = image_store(settings), open_store(settings.store)
        self._images = ImageLoader(settings.images, label_studio, kept=kept, shared=shared)
        # What is read here is read again for training, without the operator's limit.
        self._max_pixels = min(settings.images.max_pixels, DEFAULT_MAX_PIXELS)
        self._config = config

    def read(self, task: Mapping[str, Any], keep_image: KeepImage) -> Reading:
        """The masks of a task.

        Args:
            task: As labelled_tasks.py yields it.
            keep_image: Where its images go.

        Raises:
            OSError: Of ``keep_image``.
        """
        reading = Reading(TaskLine(task["id"]))
        left_out = reading.line.left_out
        if "annotations" not in task:
            left_out.append(LeftOut(task["id"], None, TOO_LARGE))
            return reading
        taken, others = choose(task["annotations"])
        left_out.extend(LeftOut(task["id"], number, why) for number, why in others.items())
        shown: dict[str, _Shown | EdgeSamError] = {}
        for annotation in taken:
            number, regions = annotation["id"], regions_of(annotation["result"])
            if not regions:
                left_out.append(LeftOut(task["id"], number, NO_REGION))
            for region in regions:
                image = self._image(region, task, shown, keep_image)
                if isinstance(image, _Shown):
                    try:
                        self._refuse_prompt(region)
                        image.objects.append(_object(region, image.size_hw, number))
                    except EdgeSamError as exc:
                        why = exc.sentence
                        left_out.append(LeftOut(task["id"], number, why, region.region_id))
                    continue
                if isinstance(image, UpstreamError):
                    reading.outage = image
                if (entry := LeftOut(task["id"], number, image.sentence)) not in left_out:
                    left_out.append(entry)
        reading.line.pictures.extend(_pictures(shown.values()))
        return reading

    def _refuse_prompt(self, region: Region) -> None:
        """A box of a smart tool, in a project whose objects are masks, was a question.

        Raises:
            PromptError: It is one.
        """
        if self._config.is_question(region.shape, region.from_name):
            raise PromptError(
                "A rectangle of the smart tool asks for a mask and is none. Delete it if it was "
                "left over."
            )

    def _image(
        self,
        region: Region,
        task: Mapping[str, Any],
        shown: dict[str, _Shown | EdgeSamError],
        keep_image: KeepImage,
    ) -> _Shown | EdgeSamError:
        """The image that a region lies on, fetched once for a task, or why there is none."""
        try:
            tag = self._config.image(region.to_name)
            uri = image_uri(tag, task["data"], region.item_index)
        except LabelConfigError:
            return LabelConfigError(
                f"The region lies on {region.to_name!r:.60}, which is no <Image> of the labelling "
                "config. Draw it again, or give the tag its old name."
            )
        except EdgeSamError as exc:
            return exc
        if uri not in shown:
            try:
                shown[uri] = self._fetch(uri, task["id"], keep_image)
            except EdgeSamError as exc:
                shown[uri] = exc
        return shown[uri]

    def _fetch(self, uri: str, task_id: int, keep_image: KeepImage) -> _Shown:
        data = self._images.fetch(uri, task_id=task_id).data
        height, width = read_image(data, max_pixels=self._max_pixels).shape[:2]
        with Image.open(io.BytesIO(data)) as image:
            ending = str(image.format).lower()
        return _Shown(keep_image(data, ending), (height, width))


def _pictures(shown: Iterable[_Shown | EdgeSamError]) -> list[Picture]:
    """Those with objects; a picture that a task shows twice is one."""
    by_file: dict[str, Picture] = {}
    for image in shown:
        if isinstance(image, _Shown) and image.objects:
            picture = Picture(image.file_name, *image.size_hw, [])
            by_file.setdefault(image.file_name, picture).objects.extend(image.objects)
    return list(by_file.values())


def _object(region: Region, size_hw: SizeHW, annotation_id: int) -> dict[str, Any]:
    """A region as a COCO annotation, with its label in place of ids.

    Raises:
        PromptError: It has no mask.
    """
    mask = region_mask(region, size_hw)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "label": region.label,
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(np.count_nonzero(mask)),
        "iscrowd": 0,
        "segmentation": mask_to_coco_rle(mask),
        "annotation": annotation_id,
        "region": region.region_id,
        "shape": region.shape,
        "origin": region.origin,
        "edgesam": region.story,
    }
