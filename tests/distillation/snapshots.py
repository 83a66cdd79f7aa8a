"""Snapshots as the backend makes them: discs on grey, in a project whose tasks are the images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distillation.coco_masks import mask_to_coco_rle
from edgesam_core.windowed_mask import WindowedMask
from tests.distillation.discs import SIZE_HW, coco_of, disc, scene

Spoil = Callable[[list[np.ndarray]], list[np.ndarray]]


def two_discs(rng: np.random.Generator) -> list[np.ndarray]:
    y = rng.integers(30, 60, 2)
    x = (rng.integers(22, 38), rng.integers(82, 98))
    return [disc(x[i], y[i], rng.integers(12, 20)) for i in range(2)]


def write_snapshot(
    run: Path,
    *,
    train: int = 6,
    held_out: int = 4,
    draw: Callable[[np.random.Generator], list[np.ndarray]] = two_discs,
    categories: tuple[int, ...] = (1, 2),
    spoil_train: Spoil | None = None,
    spoil_held_out: Spoil | None = None,
    boxes: bool = False,
) -> Path:
    """``run/snapshot``: every image shows what ``draw`` draws, labelled by ``categories`` in turn;
    about every second region has a stored prompt, a click or (``boxes``) its box."""
    folder = run / "snapshot"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(5)
    for half, count, first_id, spoil in (
        ("train", train, 1, spoil_train),
        ("held_out", held_out, 101, spoil_held_out),
    ):
        masks_of_image = {first_id + n: draw(rng) for n in range(count)}
        for image_id, masks in masks_of_image.items():
            Image.fromarray(scene(masks)).save(folder / "images" / f"{image_id}.png")
        coco = coco_of(masks_of_image, categories=categories)
        for image in coco["images"]:
            image["task"] = image["id"] + 1000
        for annotation in coco["annotations"]:
            annotation["id"] += 10 * first_id
            annotation["edgesam"] = _story(annotation["bbox"], boxes=boxes)
        if spoil is not None:
            _spoil(coco, masks_of_image, spoil)
        (folder / f"{half}.json").write_text(json.dumps(coco))
    (folder / "snapshot.json").write_text(json.dumps({"project": 3, "hash": "ab" * 32}))
    return run


def _story(bbox: list[float], *, boxes: bool) -> dict[str, Any] | None:
    x, y, width, height = bbox
    if round(x) % 2:
        return None
    if boxes:
        corners = [x, y, x + width, y + height]
        return {"version": "v", "prompt": {"points": [], "labels": [], "box": corners}}
    middle = [x + width / 2, y + height / 2]
    return {"version": "v", "prompt": {"points": [middle], "labels": [1], "box": None}}


def _spoil(coco: dict[str, Any], masks_of_image: dict[int, Any], spoil: Spoil) -> None:
    for image_id, masks in masks_of_image.items():
        own = [a for a in coco["annotations"] if a["image_id"] == image_id]
        for annotation, mask in zip(own, spoil(masks), strict=True):
            annotation["segmentation"] = mask_to_coco_rle(mask)
            annotation["area"] = int(mask.sum())
            x0, y0, x1, y1 = WindowedMask.from_full(mask).box_xyxy or (0, 0, 1, 1)
            annotation["bbox"] = [x0, y0, x1 - x0, y1 - y0]


def exchanged(masks: list[np.ndarray]) -> list[np.ndarray]:
    return masks[::-1]


def shifted(masks: list[np.ndarray]) -> list[np.ndarray]:
    down, right = (round(side / 10) for side in SIZE_HW)
    return [np.roll(mask, (down, right), axis=(0, 1)) for mask in masks]


def empty(masks: list[np.ndarray]) -> list[np.ndarray]:
    return [np.zeros_like(mask) for mask in masks]


def full(masks: list[np.ndarray]) -> list[np.ndarray]:
    return [np.ones_like(mask) for mask in masks]


SABOTAGE: dict[str, Spoil] = {
    "exchanged": exchanged, "shifted": shifted, "empty": empty, "full": full,
}  # fmt: skip
