"""The one reader of COCO and LVIS files: what it reads, and what it finds wrong."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from distillation import data
from distillation.coco import check, find_sets, load_set, main, refuse
from distillation.coco_masks import mask_to_coco_rle, segmentation_to_mask
from distillation.instances import Finding
from edgesam_core.errors import RunError
from tests.distillation.discs import MASKS, SIZE_HW, coco_of, disc, write_set


def load(folder):
    ((name, file, images_dir),) = find_sets(folder)
    return load_set(name, file, images_dir)


def changed(change):
    """COCO of the discs after ``change(coco)``."""
    coco = json.loads(json.dumps(coco_of(MASKS)))
    change(coco)
    return coco


# --- masks ---


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_run_lengths_are_read_as_pycocotools_writes_them(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    rle = mask_to_coco_rle(mask)
    assert np.array_equal(segmentation_to_mask(rle, (height, width)), mask)
    changes = np.flatnonzero(np.diff(mask.T.ravel().astype(int), prepend=0))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    plain = {"size": [height, width], "counts": counts}
    assert np.array_equal(segmentation_to_mask(plain, (height, width)), mask)


def test_long_runs_are_read_too():
    mask = np.zeros((3000, 2000), bool)
    mask[:, 700:1900] = True
    assert np.array_equal(segmentation_to_mask(mask_to_coco_rle(mask), mask.shape), mask)


def test_polygons_of_one_object_are_joined():
    squares = [[10, 10, 30, 10, 30, 30, 10, 30], [50, 40, 80, 40, 80, 60, 50, 60]]
    mask = segmentation_to_mask(squares, SIZE_HW)
    assert mask[10:30, 10:30].all()
    assert mask[40:60, 50:80].all()
    assert mask.sum() == 20 * 20 + 20 * 30


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        pytest.param(mask_to_coco_rle(np.ones((9, 12))), "size", id="another size"),
        pytest.param({"size": list(SIZE_HW), "counts": "0"}, "add up", id="cut short"),
        pytest.param({"size": list(SIZE_HW), "counts": ""}, "damaged", id="empty string"),
        pytest.param({"size": list(SIZE_HW), "counts": "ooooo"}, "damaged", id="no last digit"),
        pytest.param({"size": list(SIZE_HW), "counts": "\x01~"}, "damaged", id="other signs"),
        pytest.param({"size": list(SIZE_HW), "counts": [5, 5]}, "add up", id="plain, too few"),
        pytest.param({"size": list(SIZE_HW), "counts": [-5, 10805]}, "add up", id="negative"),
        pytest.param({"size": list(SIZE_HW), "counts": [1.5]}, "whole numbers", id="fractions"),
        pytest.param({"size": list(SIZE_HW), "counts": None}, "neither", id="no counts"),
        pytest.param([[1, 2, 3, 4]], "three or more pairs", id="a line"),
        pytest.param([[1, 2, 3, 4, 5, "x"]], "no lists of numbers", id="words"),
        pytest.param([], "no polygon", id="no polygons"),
        pytest.param(None, "neither polygons nor", id="nothing"),
    ],
)
def test_a_mask_that_cannot_be_read_says_why(segmentation, reason):
    with pytest.raises(ValueError, match=reason):
        segmentation_to_mask(segmentation, SIZE_HW)


# --- files ---


def test_a_good_set_has_no_findings_and_keeps_everything(tmp_path):
    folder = write_set(tmp_path / "discs")
    assert check(folder) == []
    annotated = load(folder)
    assert [image.image_id for image in annotated.images] == [1, 2]
    instance = annotated.images[0].instances[1]
    assert np.array_equal(instance.mask(), MASKS[1][1])
    assert instance.box_xyxy.tolist() == [66, 26, 105, 65]
    assert instance.area_px == MASKS[1][1].sum()
    assert annotated.images[1].read().shape == (*SIZE_HW, 3)


def test_boxes_and_areas_that_are_missing_come_from_the_mask(tmp_path):
    def strip(coco):
        for annotation in coco["annotations"]:
            del annotation["bbox"], annotation["area"]

    full = load(write_set(tmp_path / "full")).images
    bare = load(write_set(tmp_path / "bare", coco=changed(strip))).images
    for image, same in zip(full, bare, strict=True):
        for instance, other in zip(image.instances, same.instances, strict=True):
            assert instance.box_xyxy.tolist() == other.box_xyxy.tolist()
            assert instance.area_px == other.area_px


def test_lvis_files_are_read(tmp_path):
    """Images by coco_url, no iscrowd, polygons, and categories that were not looked for."""

    def as_lvis(coco):
        for image in coco["images"]:
            name = image.pop("file_name")
            image["coco_url"] = f"http://images.example.org/val2017/{name}"
            image["neg_category_ids"] = [7]
            image["not_exhaustive_category_ids"] = [1]
        coco["annotations"][0]["segmentation"] = [[20, 20, 40, 20, 40, 60, 20, 60]]
        coco["categories"].append({"id": 7, "name": "never there", "frequency": "r"})

    folder = write_set(tmp_path / "lvis", coco=changed(as_lvis))
    annotated = load(folder)
    assert annotated.images[0].path == folder / "images" / "1.png"
    assert annotated.images[0].searched_category_ids == {1, 7}
    assert annotated.images[0].incomplete_category_ids == {1}
    assert annotated.images[0].instances[0].mask().sum() == 20 * 40
    assert not annotated.images[0].instances[0].is_crowd
    (folder / "images" / "val2017").mkdir()
    (folder / "images" / "1.png").rename(folder / "images" / "val2017" / "1.png")
    assert load(folder).images[0].read().shape == (*SIZE_HW, 3)


def test_a_file_beside_its_image_folder_is_a_set_named_after_it(tmp_path):
    folder = write_set(tmp_path / "discs")
    file = (folder / "annotations.json").rename(tmp_path / "val2017.json")
    assert find_sets(file, folder / "images") == [("val2017", file, folder / "images")]
    assert check(file, folder / "images") == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda c: c.pop("images"), "no list 'images'", id="no images"),
        pytest.param(lambda c: c.update(annotations={}), "no list 'annotations'", id="no list"),
        pytest.param(
            lambda c: c["annotations"][0].update(image_id=9),
            "annotation 1 is of an unknown image, 9",
            id="unknown image",
        ),
        pytest.param(
            lambda c: c["annotations"][2].update(category_id=5),
            "annotation 3 is of an unknown category, 5",
            id="unknown category",
        ),
        pytest.param(
            lambda c: c["annotations"][1].update(id=1), "annotation 1", id="annotation twice"
        ),
        pytest.param(
            lambda c: c["images"].append(c["images"][0]), "same id: image 1", id="image twice"
        ),
        pytest.param(lambda c: c["images"][0].pop("width"), "no height and width", id="no size"),
        pytest.param(lambda c: c["images"][0].pop("file_name"), "file_name", id="no name"),
        pytest.param(lambda c: c["annotations"][0].update(id=None), "whole number", id="no id"),
        pytest.param(
            lambda c: c["annotations"][0].update(image_id=[1]),
            r"unknown image, \[1\]",
            id="list of images",
        ),
        pytest.param(
            lambda c: c["annotations"][0].update(category_id={}),
            "unknown category, {}",
            id="category that is no number",
        ),
        pytest.param(
            lambda c: c["images"][0].update(neg_category_ids=None),
            "image 1 has neg_category_ids that are no list of ids",
            id="no list of categories",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_found_by_file_and_reason(tmp_path, change, reason):
    folder = write_set(tmp_path / "discs", coco=changed(change))
    errors = [finding for finding in check(folder) if not finding.is_warning]
    assert any(
        finding.file == folder / "annotations.json" and re.search(reason, finding.reason)
        for finding in errors
    )
    with pytest.raises(RunError, match=reason):
        data.load_set(folder, max_side=100)


def spoil_image(folder):
    (folder / "images" / "2.png").write_bytes(b"no image")


def truncate_image(folder):
    path = folder / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(spoil_image, "could not be read", id="not an image"),
        pytest.param(truncate_image, "could not be read", id="cut off"),
        pytest.param(lambda f: (f / "images" / "2.png").unlink(), "is missing", id="missing"),
        pytest.param(
            lambda f: Image.new("RGB", (10, 20)).save(f / "images" / "2.png"),
            r"has the size \(height, width\) \[20, 10\]",
            id="another size",
        ),
    ],
)
def test_an_image_that_cannot_be_used_is_found_before_training(tmp_path, spoil, reason):
    folder = write_set(tmp_path / "discs")
    spoil(folder)
    (finding,) = check(folder)
    assert finding.file.name == "2.png"
    with pytest.raises(RunError, match=rf"2\.png: {reason}"):
        data.load_set(folder, max_side=100)


def test_empty_masks_and_masks_of_another_size_are_found(tmp_path):
    def spoil(coco):
        coco["annotations"][0]["segmentation"] = mask_to_coco_rle(np.zeros(SIZE_HW))
        coco["annotations"][2]["segmentation"] = mask_to_coco_rle(disc(5, 5, 4, (20, 30)))

    folder = write_set(tmp_path / "discs", coco=changed(spoil))
    empty, other = check(folder)
    assert (empty.file.name, empty.reason) == ("1.png", "the mask of annotation 1 is empty")
    assert other.file.name == "2.png"
    assert "[20, 30], its image [90, 120]" in other.reason


def test_a_category_without_images_is_a_warning_and_stops_nothing(tmp_path, caplog):
    folder = write_set(
        tmp_path / "discs",
        coco=changed(lambda c: c["categories"].append({"id": 4, "name": "unicorn"})),
    )
    (finding,) = check(folder)
    assert finding.is_warning
    assert len(data.load_set(folder, max_side=100)) == 2
    assert "category 4 (unicorn) has no images" in caplog.text


def test_a_box_beside_its_image_is_a_warning_and_that_of_the_mask_is_taken(tmp_path):
    folder = write_set(
        tmp_path / "discs",
        coco=changed(lambda c: c["annotations"][0].update(bbox=[500, 5, 10, 0])),
    )
    (finding,) = check(folder)
    assert finding.is_warning
    assert load(folder).images[0].instances[0].box_xyxy.tolist() == [16, 26, 45, 55]


def test_a_file_that_is_not_json_is_named(tmp_path):
    folder = write_set(tmp_path / "discs")
    (folder / "annotations.json").write_text("{")
    with pytest.raises(RunError, match=r"annotations\.json: is not JSON"):
        data.load_set(folder, max_side=100)
    with pytest.raises(RunError, match=r"absent.annotations\.json: the file is missing"):
        data.load_set(tmp_path / "absent", max_side=100)


def test_the_sentence_names_the_first_findings_and_counts_the_rest(tmp_path):
    findings = [Finding(tmp_path / f"{number}.png", "is missing") for number in range(16)]
    with pytest.raises(RunError) as caught:
        refuse(findings)
    assert "0.png: is missing; " in caught.value.sentence
    assert "3.png" in caught.value.sentence
    assert "4.png" not in caught.value.sentence
    assert caught.value.sentence.endswith("and 12 more.")


def test_crowds_are_not_trained_on(tmp_path):
    crowd = changed(lambda c: c["annotations"][0].update(iscrowd=1))
    (first, _) = data.load_set(write_set(tmp_path / "discs", coco=crowd), max_side=120)
    assert len(first.coco_rles) == 1
    assert np.array_equal(coco_mask.decode(first.coco_rles[0]), MASKS[1][1])


def test_command_lists_everything(tmp_path, capsys):
    folder = write_set(tmp_path / "discs")
    assert main([str(folder)]) == 0
    spoil_image(folder)
    assert main([str(tmp_path)]) == 1
    assert "error:" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 1
    assert "annotations.json" in capsys.readouterr().err


def test_the_collected_sets_have_no_errors(shared):
    """One set of each kind here; `python -m distillation.coco` looks at all."""
    for name in ("open/desk_items", "research_only/wbc"):
        assert not [f for f in check(shared / "data" / name) if not f.is_warning]
