"""Mask AP: figures that follow from the definition, and boxes of a detector through a bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distillation.coco import load_set
from distillation.coco_ap import ap_to_markdown, average_precision, load_detections, mask_ap
from distillation.coco_masks import mask_to_coco_rle
from edgesam_core.bundle import Bundle
from edgesam_core.errors import RunError
from edgesam_core.segmenter import Segmenter
from tests.distillation.discs import MASKS, Oracle, coco_of, disc, write_set

# pycocotools 2.0.11 has an __array__ of before NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def discs(tmp_path):
    """Three discs of two categories in two images: kinds 1 and 2, then kind 1."""
    return load(write_set(tmp_path / "discs", coco=coco_of(MASKS, categories=(1, 2))))


def load(folder):
    return load_set("discs", folder / "annotations.json", folder / "images")


def truth_as_boxes(annotated, score=0.9):
    coco = json.loads(annotated.file.read_text())
    return [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": score}
        for annotation in coco["annotations"]
    ]


def write_boxes(folder, boxes):
    file = folder / "boxes.json"
    file.write_text(json.dumps(boxes))
    return file


def result(image_id, category_id, mask, score):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": mask_to_coco_rle(mask),
        "score": score,
    }


def test_true_boxes_and_perfect_masks_reach_100(discs, tmp_path):
    detections = load_detections(write_boxes(tmp_path, truth_as_boxes(discs)), discs)
    scores = mask_ap(Oracle(), discs, discs.images, detections)
    assert {name: scores[name] for name in ("AP", "AP50", "AP75")} == dict.fromkeys(
        ("AP", "AP50", "AP75"), 100.0
    )
    assert scores["APs"] == 100.0  # the disc of 15 pixels; the other two are medium
    assert scores["APm"] == 100.0
    assert np.isnan(scores["APl"])
    assert "| oracle | 100.0 |" in ap_to_markdown(scores, "oracle")


def test_ap_is_the_area_under_the_precision_at_101_recalls(discs):
    """Kind 1 has two objects: one hit, then one miss; kind 2 is never found.

    Kind 1: precision 1 up to recall 0.5, which are 51 of the 101 points; kind 2: 0.
    """
    results = [result(1, 1, MASKS[1][0], 0.9), result(2, 1, disc(15, 15, 10), 0.8)]
    scores = average_precision(discs, discs.images, results)
    assert scores["AP"] == pytest.approx(100 * 51 / 101 / 2, abs=0.01)


def test_a_mask_of_a_given_iou_counts_at_the_thresholds_below_it(discs):
    """IoU 0.62 passes 0.50, 0.55 and 0.60: three of the ten thresholds."""
    truth = MASKS[2][0]
    part = truth.copy()
    part.flat[np.flatnonzero(truth)[: int(0.38 * truth.sum())]] = False
    results = [
        result(1, 1, MASKS[1][0], 0.9),
        result(1, 2, MASKS[1][1], 0.9),
        result(2, 1, part, 0.95),
    ]
    scores = average_precision(discs, discs.images[1:], results[2:])
    assert scores["AP"] == pytest.approx(30.0, abs=0.01)
    assert scores["AP50"] == 100.0
    assert scores["AP75"] == 0.0


def test_only_the_chosen_images_count(discs):
    hit = [result(2, 1, MASKS[2][0], 0.9)]
    assert average_precision(discs, discs.images[1:], hit)["AP"] == 100.0
    assert average_precision(discs, discs.images, hit)["AP"] < 50


def test_no_detection_at_all_is_zero(discs):
    assert average_precision(discs, discs.images, [])["AP"] == 0.0


def test_a_box_beside_the_image_is_no_mask_and_no_failure(discs, tmp_path):
    boxes = [*truth_as_boxes(discs), truth_as_boxes(discs)[0] | {"bbox": [500, 500, 5, 5]}]
    detections = load_detections(write_boxes(tmp_path, boxes), discs)
    assert mask_ap(Oracle(), discs, discs.images, detections)["AP"] == 100.0


@pytest.fixture
def federated(tmp_path):
    """LVIS: kind 3 was not looked for in image 1 and not found in image 2; kind 1 is incomplete."""
    coco = coco_of(MASKS, categories=(1, 2))
    coco["categories"] = [
        {"id": 1, "name": "a", "frequency": "f"},
        {"id": 2, "name": "b", "frequency": "c"},
        {"id": 3, "name": "c", "frequency": "r"},
    ]
    coco["images"][0] |= {"neg_category_ids": [], "not_exhaustive_category_ids": [1]}
    coco["images"][1] |= {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    return load(write_set(tmp_path / "lvis", coco=coco))


def test_lvis_forgives_what_was_not_looked_for_or_not_annotated(federated, tmp_path):
    wrong_box = truth_as_boxes(federated)[0]["bbox"]
    boxes = [
        *truth_as_boxes(federated, score=0.5),
        # Not looked for in image 1: does not count.
        {"image_id": 1, "category_id": 3, "bbox": wrong_box, "score": 0.9},
        # Looks like a second object of a kind that is not annotated completely: does not count.
        {"image_id": 1, "category_id": 1, "bbox": truth_as_boxes(federated)[1]["bbox"],
         "score": 0.9},
    ]  # fmt: skip
    detections = load_detections(write_boxes(tmp_path, boxes), federated)
    scores = mask_ap(Oracle(), federated, federated.images, detections)
    assert (scores["AP"], scores["APf"], scores["APc"]) == (100.0, 100.0, 100.0)
    assert np.isnan(scores["APr"])
    # Looked for in image 2 and not there: a mistake, ahead of the one right answer.
    wrong = {"image_id": 2, "category_id": 2, "bbox": truth_as_boxes(federated)[2]["bbox"]}
    detections = load_detections(write_boxes(tmp_path, [*boxes, wrong | {"score": 0.9}]), federated)
    assert mask_ap(Oracle(), federated, federated.images, detections)["APc"] == 50.0


def test_a_bundle_is_asked_with_the_detectors_boxes(tiny_bundle, discs, tmp_path):
    detections = load_detections(write_boxes(tmp_path, truth_as_boxes(discs)), discs)
    segmenter = Segmenter(Bundle.open(tiny_bundle), threads=1)
    scores = mask_ap(segmenter, discs, discs.images, detections)
    assert 0 <= scores["AP"] <= scores["AP50"] <= 100


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param("{", "result format", id="not JSON"),
        pytest.param('{"boxes": []}', "result format", id="no list"),
        pytest.param('[{"image_id": 1, "category_id": 1, "score": 1}]', "bbox", id="no box"),
        pytest.param(
            '[{"image_id": 8, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 1}]',
            "image 8",
            id="unknown image",
        ),
        pytest.param(
            '[{"image_id": 1, "category_id": 8, "bbox": [1, 1, 2, 2], "score": 1}]',
            "category 8",
            id="unknown category",
        ),
    ],
)
def test_a_file_of_boxes_that_cannot_be_used_is_named(discs, tmp_path, content, reason):
    file = tmp_path / "boxes.json"
    file.write_text(content)
    with pytest.raises(RunError, match=rf"boxes\.json: .*{reason}"):
        load_detections(file, discs)
