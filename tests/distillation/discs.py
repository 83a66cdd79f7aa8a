"""Small images of coloured discs with masks, on disk in COCO's form, and one who knows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distillation.coco_masks import mask_to_coco_rle
from edgesam_core.windowed_mask import WindowedMask

SIZE_HW = (90, 120)


def disc(x, y, radius, size_hw=SIZE_HW):
    rows, columns = np.ogrid[: size_hw[0], : size_hw[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


MASKS = {1: [disc(30, 40, 15), disc(85, 45, 20)], 2: [disc(60, 45, 25)]}


def scene(masks):
    """A grey image on which every object has a colour of its own."""
    image = np.full((*SIZE_HW, 3), 90, np.uint8)
    for index, mask in enumerate(masks):
        image[mask] = (200, (40 + 60 * index) % 256, 30)
    return image


def coco_of(masks_of_image, *, categories=(1,)) -> dict[str, Any]:
    """The annotation file; objects take the categories in turn."""
    height, width = SIZE_HW
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, masks in masks_of_image.items():
        images.append(
            {"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width}
        )
        for mask in masks:
            x0, y0, x1, y1 = WindowedMask.from_full(mask).box_xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[len(annotations) % len(categories)],
                    "area": int(mask.sum()),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": mask_to_coco_rle(mask),
                }
            )
    named = [{"id": category, "name": f"kind {category}"} for category in sorted(set(categories))]
    return {"images": images, "annotations": annotations, "categories": named}


def write_set(folder: Path, masks_of_image=MASKS, coco=None) -> Path:
    """A set on disk: one PNG per image, masks as compressed COCO RLE."""
    (folder / "images").mkdir(parents=True)
    for image_id, masks in masks_of_image.items():
        Image.fromarray(scene(masks)).save(folder / "images" / f"{image_id}.png")
    content = json.dumps(coco_of(masks_of_image) if coco is None else coco)
    (folder / "annotations.json").write_text(content)
    return folder


class Answer:
    def __init__(self, mask):
        self.mask = WindowedMask.from_full(mask)
        self.low_res_logits = np.zeros((16, 16), np.float32)


class Oracle:
    """Answers with the object under the first click, or that fills the box; may spoil it."""

    def __init__(self, masks_of_image=MASKS, spoil=lambda mask: mask):
        self._scenes = [(scene(masks), masks) for masks in masks_of_image.values()]
        self._spoil = spoil
        self.prompts = []

    def embed(self, image):
        return next(masks for pixels, masks in self._scenes if np.array_equal(pixels, image))

    def segment(self, embedding, prompts):
        self.prompts += prompts
        return [Answer(self._spoil(self._meant(embedding, prompt))) for prompt in prompts]

    def _meant(self, masks, prompt):
        if prompt.box_xyxy is not None:
            windows = [WindowedMask.from_full(mask) for mask in masks]
            return next(w.full() for w in windows if w.box_xyxy == tuple(prompt.box_xyxy))
        column, row = prompt.point_coords[0].astype(int)
        return next(mask for mask in masks if mask[row, column])
