"""Training crops: what the student sees is where the masks say it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from distillation.data import LabelledImage, draw_crop, load_set


def test_every_tenth_image_is_validation_and_never_training(data_folder: Path) -> None:
    folder = data_folder / "open" / "scenes"
    training = load_set(folder, max_side=160)
    validation = load_set(folder, max_side=160, validation=True)
    assert (len(training), len(validation)) == (11, 1)


def test_photos_are_kept_at_the_given_long_side(data_folder: Path) -> None:
    for labelled in load_set(data_folder / "open" / "scenes", max_side=80):
        assert max(labelled.image.shape[:2]) == 80
        assert len(labelled.coco_rles) == len(labelled.areas) == len(labelled.boxes_xywh)


@pytest.mark.parametrize("seed", range(8))
def test_masks_of_a_crop_are_binary_and_not_smaller_than_asked(
    data_folder: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labelled = load_set(data_folder / "open" / "scenes", max_side=160)[seed]
    crop = draw_crop(rng, labelled, 128, max_masks=4, min_area=0.01)
    assert crop.image.shape == (128, 128, 3)
    assert len(crop.masks) <= 4
    assert set(np.unique(crop.masks)) <= {0, 255}
    assert all((mask > 0).sum() >= 0.5 * 0.01 * 128**2 for mask in crop.masks)


def test_image_and_mask_are_cut_by_the_same_window(data_folder: Path) -> None:
    """A photo that is its own mask must come out equal to it, whatever the window."""
    labelled = load_set(data_folder / "open" / "scenes", max_side=160)[0]
    largest = int(labelled.areas.argmax())
    mask = coco_mask.decode(labelled.coco_rles[largest])
    photo = LabelledImage(
        np.repeat(mask[..., None] * 255, 3, axis=2),
        labelled.coco_rles[largest : largest + 1],
        labelled.boxes_xywh[largest : largest + 1],
        labelled.areas[largest : largest + 1],
    )
    seen = 0
    for seed in range(20):
        crop = draw_crop(np.random.default_rng(seed), photo, 128, max_masks=1, min_area=0.002)
        assert crop.valid is not None
        for cut in crop.masks:
            grey, inside = crop.image.mean(axis=2)[crop.valid == 255], cut[crop.valid == 255] > 0
            if inside.any() and not inside.all():
                seen += 1
                white = grey > (grey.min() + grey.max()) / 2  # colours are changed, edges are not
                assert np.mean(white == inside) > 0.98
    assert seen > 10
