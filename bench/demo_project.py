"""A project that a program labels in Label Studio, as an annotator would: demo_train.py's part.

The program knows the true masks. It draws boxes, takes what the model suggests and corrects it, or
draws a mask by hand, and submits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distillation.annotated_images import annotated_images
from distillation.instances import AnnotatedImage, Instance
from edgesam_core.geometry import box_to_percent
from edgesam_core.rle import mask_to_brush_rle
from edgesam_core.windowed_mask import WindowedMask
from tests.servers import RunningBackend
from tests.system.api import LabelStudioApi

REGIONS_PER_TASK = 12
SUGGESTED_EVERY = 2
"""Every other region was suggested by the model and then corrected, the rest drawn by hand."""


def label_config(label: str) -> str:
    """Masks of one label, and a smart box and a smart click to ask for them."""
    word = f'<Label value="{label}"/>'
    return f"""<View><Image name="image" value="$image"/>
    <BrushLabels name="mask" toName="image">{word}</BrushLabels>
    <RectangleLabels name="box" toName="image" smart="true">{word}</RectangleLabels>
    <KeyPointLabels name="click" toName="image" smart="true">{word}</KeyPointLabels></View>"""


def pictures_of(dataset: Path, count: int) -> tuple[str, list[AnnotatedImage]]:
    """The set's word for its objects, and so many of its images, evenly spread over all of it."""
    categories = json.loads((dataset / "annotations.json").read_bytes())["categories"]
    images = list(annotated_images(dataset, per_image=REGIONS_PER_TASK))
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    return str(categories[0]["name"]), [images[index] for index in chosen]


def largest(picture: AnnotatedImage) -> Instance:
    """The object that the next click asks for: every version has a mask for it."""
    return max(picture.instances, key=lambda instance: instance.area_px)


@dataclass(frozen=True)
class Project:
    """A project with a backend."""

    api: LabelStudioApi
    project_id: int
    backend_id: int
    label: str

    @classmethod
    def create(cls, api: LabelStudioApi, backend: RunningBackend, label: str) -> Project:
        """An empty one."""
        project_id = api.create_project(f"demo: {label}", label_config(label))
        attached = api.attach(project_id, backend.url)
        assert attached.ok, attached.text
        return cls(api, project_id, attached.json()["id"], label)

    def upload(self, picture: AnnotatedImage) -> int:
        """A picture becomes a task."""
        return self.api.upload(self.project_id, picture.path.name, picture.path.read_bytes())

    def annotate(self, task: int, picture: AnnotatedImage) -> int:
        """Label the objects of a task and submit; how many of them the model had suggested."""
        regions = [
            (number % SUGGESTED_EVERY == 0 and self._corrected(task, instance))
            or self._drawn(number, instance)
            for number, instance in enumerate(picture.instances)
        ]
        body = {"result": regions, "lead_time": 10.0}
        self.api.call("POST", f"/api/tasks/{task}/annotations", json=body)
        return sum("meta" in region for region in regions)

    def ask(self, task: int, instance: Instance) -> dict[str, Any]:
        """Draw a box around an object; what the page gets for it."""
        x, y, width, height = box_to_percent(instance.box_xyxy, instance.original_size_hw)
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
        region = {
            **_size(instance),
            "id": "smart",
            "from_name": "box",
            "to_name": "image",
            "type": "rectanglelabels",
            "origin": "manual",
            "value": {**value, "rectanglelabels": [self.label]},
        }
        return self.api.click(self.backend_id, task, region)

    def start_training(self) -> None:
        """Press Start Training."""
        self.api.call("POST", f"/api/ml/{self.backend_id}/train", json={})

    def _corrected(self, task: int, instance: Instance) -> dict[str, Any] | None:
        """The model's suggestion with the true mask in it; None where it had none."""
        answer = self.ask(task, instance)
        result = (answer.get("data") or {}).get("result") or []
        if not result:
            return None
        region: dict[str, Any] = result[0]
        region["value"]["rle"] = _true_rle(instance)
        return {**region, "origin": "prediction-changed"}

    def _drawn(self, number: int, instance: Instance) -> dict[str, Any]:
        return {
            **_size(instance),
            "id": f"drawn-{number}",
            "from_name": "mask",
            "to_name": "image",
            "type": "brushlabels",
            "origin": "manual",
            "value": {
                "format": "rle",
                "rle": _true_rle(instance),
                "brushlabels": [self.label],
            },
        }


def _size(instance: Instance) -> dict[str, int]:
    height, width = instance.original_size_hw
    return {"original_width": width, "original_height": height, "image_rotation": 0}


def _true_rle(instance: Instance) -> list[int]:
    return mask_to_brush_rle(WindowedMask.from_full(instance.mask()))
