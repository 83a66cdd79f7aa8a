"""The measuring stick: IoU, clicks, baselines, and the command on a bundle that really runs."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from distillation import baselines
from distillation.annotated_images import annotated_images
from distillation.baseline_scores import BaselineScores
from distillation.click_rounds import Turn, box_prompt, click_prompt, with_click
from distillation.evaluate import WITH_LOGITS, EvaluationConfig, evaluate, main
from distillation.metrics import Score, mask_iou, mean_ious, mean_ious_by_set, to_markdown
from distillation.prompt_points import (
    centre_click,
    deepest_pixel,
    middle_of_error_click,
    wrong_pixel_click,
)
from edgesam_core.bundle import Bundle
from edgesam_core.errors import RunError
from edgesam_core.segmenter import Segmenter
from edgesam_core.windowed_mask import WindowedMask

SIZE_HW = (90, 120)

# pycocotools 2.0.11 has an __array__ of before NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def disc(x, y, radius, size_hw=SIZE_HW):
    rows, columns = np.ogrid[: size_hw[0], : size_hw[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def scene(masks):
    """A grey image on which every object has a colour of its own."""
    image = np.full((*SIZE_HW, 3), 90, np.uint8)
    for index, mask in enumerate(masks):
        image[mask] = (200, 40 + 60 * index, 30)
    return image


def write_set(folder, masks_of_image):
    """A set on disk: one PNG per image, masks as compressed COCO RLE."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for image_id, masks in masks_of_image.items():
        Image.fromarray(scene(masks)).save(folder / "images" / f"{image_id}.png")
        height, width = SIZE_HW
        images.append(
            {"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width}
        )
        for mask in masks:
            rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "area": int(mask.sum()),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "segmentation": rle | {"counts": rle["counts"].decode()},
                }
            )
    (folder / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": []})
    )
    return folder


@pytest.fixture
def two_images(tmp_path):
    return write_set(
        tmp_path / "discs",
        {1: [disc(30, 40, 15), disc(85, 45, 20)], 2: [disc(60, 45, 25)]},
    )


class Answer:
    def __init__(self, mask):
        self.mask = WindowedMask.from_full(mask)
        self.low_res_logits = np.zeros((16, 16), np.float32)


class Oracle:
    """Answers with the object under the first click, or that fills the box; may spoil it."""

    def __init__(self, masks_of_image, spoil=lambda mask: mask):
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


MASKS = {1: [disc(30, 40, 15), disc(85, 45, 20)], 2: [disc(60, 45, 25)]}


def test_iou_is_shared_pixels_by_pixels_of_either():
    left, right = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :3], right[:, 1:] = True, True
    assert mask_iou(left, right) == 0.5
    assert mask_iou(left, left) == 1.0
    assert mask_iou(left, np.zeros_like(left)) == 0.0
    assert np.isnan(mask_iou(np.zeros_like(left), np.zeros_like(left)))


def test_means_are_over_objects_and_leave_out_nan():
    def score(set_name, iou, annotation_id):
        return Score(set_name, 1, annotation_id, 100, "model", "box", iou)

    scores = [score("a", 1.0, 1), score("a", 0.5, 2), score("b", 0.0, 3), score("b", np.nan, 4)]
    assert mean_ious(scores) == {"model": {"box": 50.0}}
    assert mean_ious_by_set(scores)["a"] == {"model": {"box": 75.0}}
    table = to_markdown(mean_ious_by_set(scores), {"all": 4, "a": 2, "b": 2})
    assert "| all (4) | model | 50.0 | - |" in table


def test_centre_click_is_where_the_published_evaluation_has_it(shared):
    reference = json.loads((shared / "parity" / "training_eval_reference.json").read_text())
    y, x = np.mgrid[:200, :260]
    from_ring_centre = (x - 120) ** 2 + (y - 100) ** 2
    masks = {
        "disc": (x - 90) ** 2 + (y - 80) ** 2 < 50**2,
        "ring": (from_ring_centre > 40**2) & (from_ring_centre < 80**2),
        "ell": ((x > 20) & (x < 60) & (y > 10) & (y < 190))
        | ((x > 20) & (x < 250) & (y > 150) & (y < 190)),
        "corner": (x < 40) & (y < 30),
        "two": disc(50, 50, 20, (200, 260)) | disc(180, 120, 45, (200, 260)),
        "full": np.ones((200, 260), bool),
    }
    assert masks.keys() == reference["centre_xy"].keys()
    for name, mask in masks.items():
        assert deepest_pixel(mask)[:2] == tuple(reference["centre_xy"][name]), name


def test_centre_click_lies_in_the_middle_of_its_pixel():
    one_pixel = np.zeros((5, 7), bool)
    one_pixel[2, 6] = True
    assert centre_click(one_pixel) == (6.5, 2.5, 1)


@pytest.mark.parametrize("rule", [wrong_pixel_click, middle_of_error_click])
@pytest.mark.parametrize("size_hw", [(90, 120), (700, 1001)], ids=["small", "large"])
def test_corrective_click_lands_in_an_error_and_says_which(rule, size_hw):
    height, width = size_hw
    truth = disc(width // 3, height // 2, height // 4, size_hw)
    prediction = disc(width // 2, height // 2, height // 4, size_hw)
    labels = set()
    for seed in range(30):
        x, y, label = rule(prediction, truth, seed)
        row, column = int(y), int(x)
        assert prediction[row, column] != truth[row, column]
        assert label == truth[row, column]
        labels.add(label)
    assert labels == ({0, 1} if rule is wrong_pixel_click else {1})


def test_middle_of_error_is_the_thickest_error():
    truth = disc(30, 45, 12)
    spilled = truth | disc(85, 45, 20)
    assert middle_of_error_click(spilled, truth) == (85.5, 45.5, 0)
    assert middle_of_error_click(np.zeros_like(truth), truth) == (30.5, 45.5, 1)


def test_nothing_wrong_draws_no_click():
    truth = disc(30, 45, 12)
    assert wrong_pixel_click(truth, truth, 0) is None
    assert middle_of_error_click(truth, truth) is None


def test_corrective_click_is_appended_and_logits_go_in_only_when_asked():
    logits = np.ones((16, 16), np.float32)
    turn = Turn(click_prompt((3.5, 4.5, 1)), disc(30, 45, 12), logits)
    plain = with_click(turn, (8.5, 9.5, 0), feed_logits=False)
    assert plain.point_coords.tolist() == [[3.5, 4.5], [8.5, 9.5]]
    assert plain.point_labels.tolist() == [1, 0]
    assert plain.mask_input is None
    assert with_click(turn, (8.5, 9.5, 0), feed_logits=True).mask_input is logits
    boxed = Turn(box_prompt(np.array([1, 2, 9, 8])), turn.mask, logits)
    assert with_click(boxed, (3.5, 4.5, 1), feed_logits=False).box_xyxy.tolist() == [1, 2, 9, 8]


def test_perfect_answers_score_100_and_are_never_corrected(two_images):
    oracle = Oracle(MASKS)
    scores = evaluate(oracle, annotated_images(two_images))
    columns = ("box", "box+1", "box+2", "click", "click+1", "click+2")
    assert mean_ious(scores) == {"model": dict.fromkeys(columns, 100.0)}
    assert len(oracle.prompts) == 6  # three objects, by box and by click


def test_answers_that_stay_wrong_get_two_clicks_more(two_images):
    oracle = Oracle(MASKS, spoil=lambda mask: np.roll(mask, 12, axis=1))
    scores = evaluate(
        oracle, annotated_images(two_images), config=EvaluationConfig(mask_input=True)
    )
    assert sorted({len(p.point_labels) for p in oracle.prompts}) == [0, 1, 2, 3]
    fed_back = [p for p in oracle.prompts if p.mask_input is not None]
    assert len(fed_back) == 3 * 2 * 2  # objects, box or click, corrections
    means = mean_ious(scores)
    assert means["model"] == means["model" + WITH_LOGITS]
    assert 0 < means["model"]["box"] < 100


def test_specks_that_the_service_removes_are_not_measured(two_images):
    def with_speck(mask):
        spoiled = mask.copy()
        spoiled[:3, :3] = True
        return spoiled

    scores = evaluate(Oracle(MASKS, spoil=with_speck), annotated_images(two_images))
    assert mean_ious(scores)["model"]["box"] == 100


def test_even_and_odd_ids_part_the_images(two_images):
    def ids(**which):
        return [image.image_id for image in annotated_images(two_images, **which)]

    assert ids(half="odd") == [1]
    assert ids(half="even") == [2]
    assert ids() == [1, 2]
    assert ids(limit=1) == [1]


def test_the_lowest_ids_of_sufficient_area_are_asked_for(tmp_path):
    masks = [disc(10, 10, 3), disc(30, 40, 15), disc(85, 45, 20), disc(60, 80, 9)]
    folder = write_set(tmp_path / "discs", {7: masks})
    (image,) = annotated_images(folder, per_image=2)
    assert [instance.annotation_id for instance in image.instances] == [2, 3]
    assert np.array_equal(image.instances[0].mask(), masks[1])


def test_missing_image_and_mask_of_another_size_are_named(two_images):
    (two_images / "images" / "1.png").unlink()
    with pytest.raises(RunError, match=r"1\.png"):
        evaluate(Oracle(MASKS), annotated_images(two_images))
    Image.new("RGB", (10, 10)).save(two_images / "images" / "1.png")
    with pytest.raises(RunError, match="size"):
        evaluate(Oracle(MASKS), annotated_images(two_images))
    with pytest.raises(RunError, match=r"annotations\.json"):
        next(annotated_images(two_images / "images"))


def test_ellipse_touches_the_box_and_keeps_its_area():
    box = np.array([10, 20, 110, 70], np.float32)
    ellipse = baselines.ellipse_mask(box, SIZE_HW)
    assert WindowedMask.from_full(ellipse).box_xyxy == (10, 20, 110, 70)
    assert ellipse.sum() == pytest.approx(np.pi / 4 * 100 * 50, rel=0.01)
    assert baselines.box_mask(box, SIZE_HW).sum() == 100 * 50


def test_grabcut_finds_a_plain_object():
    truth = disc(60, 45, 25)
    noise = np.random.default_rng(0).integers(0, 9, (*SIZE_HW, 3), dtype=np.uint8)
    image = scene([truth]) + noise
    box = np.array(WindowedMask.from_full(truth).box_xyxy, np.float32)
    assert mask_iou(baselines.grabcut_from_box(image, box), truth) > 0.95
    assert mask_iou(baselines.grabcut_from_click(image, (60.5, 45.5)), truth) > 0.95


def test_grabcut_that_has_no_background_answers_with_the_box():
    image = scene([disc(60, 45, 25)])
    whole = np.array([0, 0, SIZE_HW[1], SIZE_HW[0]], np.float32)
    assert baselines.grabcut_from_box(image, whole).all()


def test_grabcut_that_comes_back_empty_answers_with_the_box(monkeypatch):
    def finds_nothing(image, labels, *_):
        labels[:] = cv2.GC_BGD

    monkeypatch.setattr(cv2, "grabCut", finds_nothing)
    box = np.array([10, 20, 50, 40], np.float32)
    mask = baselines.grabcut_from_box(scene([]), box)
    assert WindowedMask.from_full(mask).box_xyxy == (10, 20, 50, 40)
    assert mask.sum() == 40 * 20


def test_baselines_are_computed_once_and_then_remembered(two_images, tmp_path, monkeypatch):
    cache = tmp_path / "kept" / "baselines.jsonl"
    first = evaluate(None, annotated_images(two_images), baselines=BaselineScores(cache))
    monkeypatch.delattr(cv2, "grabCut")
    again = evaluate(None, annotated_images(two_images), baselines=BaselineScores(cache))
    assert again == first
    assert {(s.method, s.column) for s in first} == {
        ("the box itself", "box"),
        ("ellipse in the box", "box"),
        ("GrabCut", "box"),
        ("GrabCut", "click"),
    }


def test_command_scores_a_bundle_beside_the_baselines(tiny_bundle, two_images, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(tiny_bundle), str(two_images), "--out", str(out), "--threads", "1"]
    assert main([*arguments, "--mask-input", "--baselines", "--ids", "odd"]) == 0
    result = json.loads((out / "scores.json").read_text())
    assert result["counts"]["all"] == 2
    assert isinstance(result["refines_with_mask_input"], bool)
    means = result["miou_percent"]["all"]
    assert len(means) == 5
    assert "| GrabCut |" in capsys.readouterr().out
    assert (out / "scores.md").read_text().count("\n") == 7
    with Image.open(out / "worst_click.png") as sheet:
        assert sheet.width == 6 * 240


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["none", str(tmp_path), "--baselines"]) == 1
    assert "annotations.json" in capsys.readouterr().err
    assert main([str(tmp_path / "no_bundle"), str(Path(tmp_path))]) == 1
    assert capsys.readouterr().err


def test_network_in_training_answers_as_its_exported_bundle(tiny_bundle):
    from distillation.torch_segmenter import TorchSegmenter
    from edgesam_core.nn.checkpoint import load_state_dict, read_checkpoint
    from edgesam_core.nn.edge_sam import EdgeSam

    bundle = Bundle.open(tiny_bundle)
    model = EdgeSam()  # in training mode, and left so
    load_state_dict(model, read_checkpoint(bundle.weights_path))
    torch_segmenter = TorchSegmenter(model, bundle.manifest.input_size)
    segmenter = Segmenter(bundle, threads=1)
    image = scene(MASKS[1])
    prompts = [click_prompt((30.5, 40.5, 1)), box_prompt(np.array([65, 25, 105, 65]))]
    answers = torch_segmenter.segment(torch_segmenter.embed(image), prompts)
    served = segmenter.segment(segmenter.embed(image), prompts)
    for answer, expected in zip(answers, served, strict=True):
        assert answer.candidate_index == expected.candidate_index
        np.testing.assert_allclose(answer.low_res_logits, expected.low_res_logits, atol=2e-3)
    assert model.training
