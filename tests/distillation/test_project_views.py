"""An image, its masks and its prompts, looked at in the ways that training knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from distillation.project_set import load_project_set, read_images
from distillation.project_views import look_through, seen_through, view_of
from tests.distillation.snapshots import write_snapshot

SIZE = 64


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp("run")) / "snapshot"


@pytest.mark.parametrize("number", range(5))
def test_image_mask_and_stored_prompt_go_through_a_view_together(
    snapshot: Path, number: int
) -> None:
    project = load_project_set(snapshot / "train.json", snapshot / "images")
    hits = 0
    for image in read_images(project, max_side=640):
        view = view_of(image, number, SIZE, seed=0)
        pixels = look_through(view, image.image, SIZE)
        for rle, stored in zip(image.coco_rles, image.stored, strict=True):
            mask = look_through(view, coco_mask.decode(rle) * 255, SIZE) > 254
            assert (pixels[mask][:, 0] > 190).all()  # the discs are red, the ground is grey
            theirs = None if stored is None else seen_through(view, stored, SIZE)
            if theirs is not None and mask.any():
                column, row = np.minimum(theirs.point_coords[0].astype(int), SIZE - 1)
                hits += bool(mask[row, column])
                assert mask[row, column]
    assert hits


def test_the_first_view_is_what_is_served(snapshot: Path) -> None:
    project = load_project_set(snapshot / "train.json", snapshot / "images")
    image = read_images(project, max_side=640)[0]
    pixels = look_through(view_of(image, 0, SIZE, seed=0), image.image, SIZE)
    assert pixels[SIZE * 90 // 120 + 2 :].max() == 0  # padding below, as letter-boxed
    assert pixels[: SIZE * 90 // 120 - 2].min() > 0
