"""Synthetic scenes: their masks are exact, and the same chance gives the same scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from distillation.synth import Cutout, Scene, load_cutouts, paste_scene, procedural_scene
from distillation.synth.camera import through_camera
from distillation.synth.canvas import LEAST_AREA_SHARE, Canvas, Coverage
from distillation.synth.outlines import Outline, rasterise
from distillation.synth.paste import square_crop
from distillation.synth.shapes import ODD, SOLID
from edgesam_core.errors import RunError

SIZE = 128
RED, GREEN, BLUE = (np.full((1, 1, 3), np.eye(3, dtype=np.uint8)[i] * 255) for i in range(3))


def _photo(seed: int = 0, height: int = 150, width: int = 210) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _disc(side: int = 80, *, is_drawn: bool = False) -> Cutout:
    rgba = np.zeros((side, side, 4), np.uint8)
    cv2.circle(rgba, (side // 2, side // 2), side // 2 - 4, (200, 30, 30, 255), -1)
    return Cutout(rgba, is_drawn)


def _square(canvas: Canvas, x0: int, y0: int, side: int, colour: np.ndarray, **how: Any) -> int:
    cover = Coverage(np.full((side, side), 255, np.uint8), x0, y0)
    return canvas.paint(cover, np.broadcast_to(colour, (side, side, 3)).copy(), **how)


def _assert_sound(scene: Scene, size: int) -> None:
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.masks.dtype == np.bool_
    assert scene.masks.shape[1:] == (size, size)
    assert all(np.count_nonzero(m) >= LEAST_AREA_SHARE * size**2 for m in scene.masks)


def _is_nested_or_disjoint(a: np.ndarray, b: np.ndarray) -> bool:
    shared = np.count_nonzero(a & b)
    return shared in (0, min(np.count_nonzero(a), np.count_nonzero(b)))


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("photos", [[], [_photo(), _photo(1, 90, 40)]], ids=["drawn", "photos"])
def test_drawn_scenes_have_3_to_20_sound_masks(size: int, photos: list[np.ndarray]) -> None:
    for seed in range(40):
        scene = procedural_scene(np.random.default_rng(seed), size, photos)
        _assert_sound(scene, size)
        assert 3 <= len(scene.masks) <= 20


def test_masks_of_a_drawn_scene_are_nested_or_disjoint_and_never_twice_the_same() -> None:
    nested = 0
    for seed in range(40):
        masks = procedural_scene(np.random.default_rng(seed), SIZE).masks
        for i, mask in enumerate(masks):
            for other in masks[i + 1 :]:
                assert _is_nested_or_disjoint(mask, other)
                assert not np.array_equal(mask, other)
                nested += bool(np.any(mask & other))
    assert nested > 20, "part and whole have to occur"


def test_the_same_chance_gives_the_same_scene() -> None:
    for seed in range(10):
        one, two = (procedural_scene(np.random.default_rng(seed), SIZE, [_photo()]) for _ in "ab")
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.masks, two.masks)
        one, two = (
            paste_scene(np.random.default_rng(seed), _photo(), [_disc()] * 4, SIZE) for _ in "ab"
        )
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.masks, two.masks)


def test_different_chance_gives_different_scenes() -> None:
    images = [procedural_scene(np.random.default_rng(seed), 64).image for seed in range(20)]
    assert len({image.tobytes() for image in images}) == len(images)


def test_what_is_painted_later_takes_its_pixels_from_what_lies_below() -> None:
    canvas = Canvas(np.zeros((SIZE, SIZE, 3), np.uint8))
    _square(canvas, 10, 10, 60, RED)
    _square(canvas, 40, 40, 60, GREEN)
    lower, upper = canvas.visible_masks()
    assert np.count_nonzero(lower) == 60 * 60 - 30 * 30
    assert np.count_nonzero(upper) == 60 * 60
    assert not np.any(lower & upper)
    np.testing.assert_array_equal(lower, canvas.image[:, :, 0] == 255)
    np.testing.assert_array_equal(upper, canvas.image[:, :, 1] == 255)


def test_an_object_that_is_almost_covered_gives_no_mask() -> None:
    canvas = Canvas(np.zeros((SIZE, SIZE, 3), np.uint8))
    _square(canvas, 10, 10, 50, RED)
    _square(canvas, 14, 10, 60, GREEN)  # a strip of 4 of 50 columns is left
    assert len(canvas.visible_masks()) == 1


def test_a_speck_gives_no_mask() -> None:
    canvas = Canvas(np.zeros((SIZE, SIZE, 3), np.uint8))
    _square(canvas, 10, 10, 3, RED)
    assert canvas.visible_masks().shape == (0, SIZE, SIZE)


def test_a_whole_is_the_union_of_its_parts_and_the_parts_are_objects_too() -> None:
    canvas = Canvas(np.zeros((SIZE, SIZE, 3), np.uint8))
    whole = canvas.group()
    _square(canvas, 10, 10, 40, RED, parent=whole)
    _square(canvas, 40, 10, 40, GREEN, parent=whole)
    _square(canvas, 20, 20, 8, BLUE)  # a stranger on top
    union, left, right, stranger = canvas.visible_masks()
    np.testing.assert_array_equal(union, left | right)
    assert not np.any(left & right)
    assert not np.any(union & stranger)


def test_a_part_inside_stays_within_its_parent_and_takes_nothing_from_it() -> None:
    canvas = Canvas(np.zeros((SIZE, SIZE, 3), np.uint8))
    whole = _square(canvas, 20, 20, 40, RED)
    _square(canvas, 40, 40, 40, GREEN, parent=whole, inside=True)
    parent, part = canvas.visible_masks()
    assert np.count_nonzero(parent) == 40 * 40
    assert np.count_nonzero(part) == 20 * 20
    assert np.all(parent[part])
    assert canvas.image[70, 70].tolist() == [0, 0, 0], "nothing is painted beside the parent"


def test_a_full_canvas_ends_a_scene_instead_of_mixing_up_ids() -> None:
    canvas = Canvas(np.zeros((64, 64, 3), np.uint8))
    while not canvas.is_full:
        _square(canvas, 0, 0, 8, RED)
    assert len(canvas) < 255
    assert len(canvas.visible_masks()) == 1


@pytest.mark.parametrize("kind", sorted({*SOLID, *ODD}, key=str))
def test_every_kind_of_outline_covers_something_and_stays_in_its_window(kind) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        cover = rasterise(kind(rng), SIZE, centre_xy=(64.0, 64.0), radius_px=30, aspect=0.8)
        assert cover is not None
        assert cover.alpha.max() > 127
        rows, columns = cover.window
        assert 0 <= rows.start < rows.stop <= SIZE
        assert 0 <= columns.start < columns.stop <= SIZE


def test_an_outline_lands_where_it_was_placed() -> None:
    box = Outline((np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32),))
    cover = rasterise(box, SIZE, centre_xy=(50.0, 70.0), radius_px=20, aspect=0.5)
    assert cover is not None
    canvas = np.zeros((SIZE, SIZE), bool)
    canvas[cover.window] = cover.alpha > 127
    rows, columns = np.nonzero(canvas.any(axis=1))[0], np.nonzero(canvas.any(axis=0))[0]
    assert (columns[0], columns[-1] + 1) == pytest.approx((30, 70), abs=1)
    assert (rows[0], rows[-1] + 1) == pytest.approx((60, 80), abs=1)


def test_a_ring_has_a_hole() -> None:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    cover = rasterise(
        Outline((circle, circle * np.float32(0.5))), SIZE, centre_xy=(64, 64), radius_px=40
    )
    assert cover is not None
    assert cover.alpha[64 - cover.y0, 64 - cover.x0] == 0
    # OpenCV fills every fine pixel that an edge touches: a quarter of a pixel on either side.
    assert np.count_nonzero(cover.alpha > 127) == pytest.approx(np.pi * 40**2 * 0.75, rel=0.05)


def test_an_outline_beside_the_frame_covers_nothing() -> None:
    outline = SOLID[0](np.random.default_rng(0))
    assert rasterise(outline, SIZE, centre_xy=(-100.0, 50.0), radius_px=20) is None


def test_pasted_masks_are_disjoint_and_sound() -> None:
    found = 0
    for seed in range(30):
        cutouts = [_disc(), _disc(40, is_drawn=True)] * 4
        scene = paste_scene(np.random.default_rng(seed), _photo(), cutouts, SIZE)
        _assert_sound(scene, SIZE)
        assert scene.masks.sum(axis=0).max(initial=0) <= 1
        found += len(scene.masks)
    assert found > 30 * 3


def test_a_pasted_mask_lies_on_the_pasted_pixels() -> None:
    grey = np.full((SIZE, SIZE, 3), 40, np.uint8)
    for seed in range(20):
        scene = paste_scene(np.random.default_rng(seed), grey, [_disc(200)], SIZE)
        red = scene.image[:, :, 0].astype(int) - scene.image[:, :, 1]
        for mask in scene.masks:
            assert red[mask].mean() > red[~mask].mean() + 20 or np.ptp(red) == 0  # 0: a grey scene


def test_masks_of_the_background_lose_what_is_covered_and_come_first() -> None:
    whole = np.ones((1, SIZE, SIZE), bool)
    for seed in range(20):
        scene = paste_scene(np.random.default_rng(seed), _photo(), [_disc()] * 3, SIZE)
        rng = np.random.default_rng(seed)
        known = paste_scene(rng, _photo(), [_disc()] * 3, SIZE, np.ones((1, 150, 210), bool))
        np.testing.assert_array_equal(known.masks[1:], scene.masks)
        np.testing.assert_array_equal(scene.image, known.image)
        assert not np.any(known.masks[0] & scene.masks.any(axis=0))
        assert np.all(whole[0][known.masks[0]])


def test_image_and_masks_of_the_background_are_cropped_alike() -> None:
    photo = _photo()
    mask = photo[:, :, 0] > 128
    for seed in range(20):
        rng = np.random.default_rng(seed)
        square, masks = square_crop(rng, photo, SIZE, mask[None])
        assert masks is not None
        assert np.mean(masks[0] == (square[:, :, 0] > 128)) > 0.98


def test_the_camera_moves_no_edge() -> None:
    image = np.full((SIZE, SIZE, 3), 60, np.uint8)
    image[:, 50:] = 180
    for seed in range(30):
        taken = through_camera(np.random.default_rng(seed), image).astype(float).sum(axis=2)
        profile = taken.mean(axis=0)
        assert int(np.argmax(np.diff(profile))) == pytest.approx(49, abs=1)


def _write_cutouts(folder: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        group, kind = name.split("/")
        (folder / group).mkdir(exist_ok=True)
        for index in range(count):
            file = folder / group / f"{kind}_{index:04d}.webp"
            Image.fromarray(_disc(24).rgba).save(file, lossless=True)


def test_the_set_is_drawn_first_then_the_kind(tmp_path: Path) -> None:
    _write_cutouts(tmp_path, {"photos/ant": 8, "photos/cat": 1, "openmoji/kite": 3})
    library = load_cutouts(tmp_path)
    rng = np.random.default_rng(0)
    draws = [library.draw(rng) for _ in range(2000)]
    assert len(library) == 12
    assert np.mean([c.is_drawn for c in draws]) == pytest.approx(0.2, abs=0.04)
    ids = [id(c) for c in draws if not c.is_drawn]
    cat = max(ids.count(i) for i in set(ids))
    assert cat / len(ids) == pytest.approx(0.5, abs=0.05), "one cat as often as eight ants"
    assert len({id(c) for c in draws}) == 12, "each file is decoded once"


def test_cutouts_may_be_limited_to_some_sets(tmp_path: Path) -> None:
    _write_cutouts(tmp_path, {"photos/cat": 2, "openmoji/kite": 3})
    assert len(load_cutouts(tmp_path, sets={"photos"})) == 2


def test_colours_run_out_into_the_transparent_ground(tmp_path: Path) -> None:
    _write_cutouts(tmp_path, {"photos/cat": 1})
    rgba = load_cutouts(tmp_path).draw(np.random.default_rng(0)).rgba
    beside = (rgba[:, :, 3] == 0) & (cv2.blur(rgba[:, :, 3], (3, 3)) > 0)
    assert np.all(np.abs(rgba[beside, :3].astype(int) - (200, 30, 30)) < 8)


def test_a_folder_without_cutouts_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no cut-outs"):
        load_cutouts(tmp_path / "nothing")


def test_the_shared_cutouts_make_scenes(shared: Path) -> None:
    library = load_cutouts(shared / "data" / "cutouts")
    rng = np.random.default_rng(0)
    assert len(library) == 1548
    for _ in range(5):
        scene = paste_scene(rng, _photo(), [library.draw(rng) for _ in range(6)], 256)
        _assert_sound(scene, 256)
