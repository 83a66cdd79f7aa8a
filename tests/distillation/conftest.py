"""A small data folder in the layout of the real one, rendered by the project itself."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from distillation.synth import procedural_scene


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rendered photos with masks, two grounds without, three cut-outs."""
    root = tmp_path_factory.mktemp("data")
    render_data(root)
    return root


def render_data(root: Path) -> None:
    """Fill a folder, the same for everyone who asks."""
    images = root / "open" / "scenes" / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(7)
    coco: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    for number in range(1, 13):
        scene = procedural_scene(rng, 160)
        name = f"scene_{number}.png"
        cv2.imwrite(str(images / name), scene.image[..., ::-1])
        coco["images"].append({"id": number, "file_name": name, "width": 160, "height": 160})
        for mask in scene.masks:
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            coco["annotations"].append(
                {"id": len(coco["annotations"]) + 1, "image_id": number, "segmentation": rle}
            )
    (root / "open" / "scenes" / "annotations.json").write_text(json.dumps(coco))

    (root / "unlabelled").mkdir()
    for number in range(2):
        ground = procedural_scene(rng, 200).image
        cv2.imwrite(str(root / "unlabelled" / f"ground_{number}.jpg"), ground)
    cutouts = root / "cutouts" / "shapes"
    cutouts.mkdir(parents=True)
    for number, kind in enumerate(("disc", "bar", "disc")):
        alpha = np.zeros((48, 48), np.uint8)
        if kind == "disc":
            cv2.circle(alpha, (24, 24), 20, 255, -1)
        else:
            cv2.rectangle(alpha, (4, 18), (44, 30), 255, -1)
        colour = rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)
        cv2.imwrite(str(cutouts / f"{kind}_{number}.webp"), np.dstack([colour, alpha]))
