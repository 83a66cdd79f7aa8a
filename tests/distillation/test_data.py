"""Training crops: what the student sees is where the masks say it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from distillation.data import PADDING_RGB, LabelledImage, cut, draw_crop, draw_oblong, load_set


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
    pixels = coco_mask.decode(labelled.coco_rles[largest]) * 255
    photo = LabelledImage(
        np.repeat(pixels[..., None], 3, axis=2),
        labelled.coco_rles[largest : largest + 1],
        labelled.boxes_xywh[largest : largest + 1],
        labelled.areas[largest : largest + 1],
    )
    seen = 0
    for seed in range(20):
        crop = draw_crop(np.random.default_rng(seed), photo, 128, max_masks=1, min_area=0.002)
        assert crop.valid is not None
        for mask in crop.masks:
            grey, inside = crop.image.mean(axis=2)[crop.valid == 255], mask[crop.valid == 255] > 0
            if inside.any() and not inside.all():
                seen += 1
                white = grey > (grey.min() + grey.max()) / 2  # colours are changed, edges are not
                assert np.mean(white == inside) > 0.98
    assert seen > 10


@pytest.mark.parametrize("shown_hw", [(80, 128), (128, 70)])
def test_what_is_cut_off_is_padding_and_no_mask_reaches_into_it(
    data_folder: Path, shown_hw: tuple[int, int]
) -> None:
    labelled = load_set(data_folder / "open" / "scenes", max_side=160)
    rows, columns = np.indices((128, 128))
    outside = (rows >= shown_hw[0]) | (columns >= shown_hw[1])
    lost = 0
    for seed, photo in enumerate(labelled):
        whole = draw_crop(np.random.default_rng(seed), photo, 128, max_masks=4, min_area=0.01)
        part = cut(whole, shown_hw, 0.01)
        assert part.valid is not None
        assert not part.valid[outside].any()
        assert not part.masks[:, outside].any()
        assert (part.image[outside] == PADDING_RGB).all()
        np.testing.assert_array_equal(part.image[~outside], whole.image[~outside])
        assert all(np.count_nonzero(mask) >= 0.01 * 128**2 for mask in part.masks)
        lost += len(whole.masks) - len(part.masks)
    assert lost > 0


def test_an_oblong_photo_fills_one_side_of_the_input() -> None:
    drawn = [draw_oblong(np.random.default_rng(seed), 128) for seed in range(50)]
    assert all(max(size) == 128 and 64 <= min(size) < 128 for size in drawn)
    assert {height > width for height, width in drawn} == {True, False}
