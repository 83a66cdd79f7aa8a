"""The measuring stick: IoU, clicks, baselines, and the command on a bundle that really runs."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from distillation import baselines, evaluate
from distillation.annotated_images import annotated_images
from distillation.baseline_scores import BaselineScores
from distillation.candidate_rules import BEST_OF_FOUR
from distillation.click_rounds import Turn, box_prompt, click_prompt, with_click
from distillation.evaluate import main
from distillation.measuring import WITH_LOGITS, MeasuringConfig, score_images
from distillation.metrics import (
    COLUMNS,
    Score,
    by_coco_size,
    by_share,
    clicks_needed,
    mask_iou,
    mean_iou_after_clicks,
    mean_ious,
    mean_ious_by_set,
    refines_with_mask_input,
    to_markdown,
)
from distillation.prompt_points import (
    centre_click,
    deepest_pixel,
    farthest_click,
    middle_of_error_click,
    random_click,
    wrong_pixel_click,
)
from edgesam_core.bundle import Bundle
from edgesam_core.errors import RunError
from edgesam_core.segmenter import Segmenter
from edgesam_core.windowed_mask import WindowedMask
from tests.distillation.discs import MASKS, SIZE_HW, Oracle, disc, scene, write_set

# pycocotools 2.0.11 has an __array__ of before NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def two_images(tmp_path):
    return write_set(tmp_path / "discs")


def test_iou_is_shared_pixels_by_pixels_of_either():
    left, right = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :3], right[:, 1:] = True, True
    assert mask_iou(left, right) == 0.5
    assert mask_iou(left, left) == 1.0
    assert mask_iou(left, np.zeros_like(left)) == 0.0
    assert np.isnan(mask_iou(np.zeros_like(left), np.zeros_like(left)))


def test_mask_input_is_worth_it_only_where_no_corrected_column_falls():
    without = {"box": 50.0, "box+1": 60.0, "click+1": 40.0}
    assert refines_with_mask_input(without, {"box": 50.0, "box+1": 60.0, "click+1": 41.0})
    assert not refines_with_mask_input(without, {"box": 50.0, "box+1": 59.9, "click+1": 48.0})


def test_means_are_over_objects_and_leave_out_nan():
    def score(set_name, iou, annotation_id):
        return Score(set_name, 1, annotation_id, 100, 10_000, "model", "box", iou)

    scores = [score("a", 1.0, 1), score("a", 0.5, 2), score("b", 0.0, 3), score("b", np.nan, 4)]
    assert mean_ious(scores) == {"model": {"box": 50.0}}
    assert mean_ious_by_set(scores)["a"] == {"model": {"box": 75.0}}
    table = to_markdown(mean_ious_by_set(scores), {"all": 4, "a": 2, "b": 2})
    assert "| all (4) | model | 50.0 |" in table


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
    scores = score_images(oracle, annotated_images(two_images))
    assert mean_ious(scores) == {"model": dict.fromkeys(COLUMNS, 100.0)}
    assert len(oracle.prompts) == 9  # three objects, by box, click in the middle, click anywhere


def test_answers_that_stay_wrong_get_two_clicks_more(two_images):
    oracle = Oracle(MASKS, spoil=lambda mask: np.roll(mask, 12, axis=1))
    scores = score_images(
        oracle, annotated_images(two_images), config=MeasuringConfig(mask_input=True)
    )
    assert sorted({len(p.point_labels) for p in oracle.prompts}) == [0, 1, 2, 3]
    fed_back = [p for p in oracle.prompts if p.mask_input is not None]
    assert len(fed_back) == 3 * 3 * 2  # objects, first prompts, corrections
    assert len(oracle.prompts) == 3 * 3 * (1 + 2 + 2)  # the first answer serves both ways
    means = mean_ious(scores)
    assert means["model"] == means["model" + WITH_LOGITS]
    assert 0 < means["model"]["box"] < 100


def test_random_first_clicks_lie_on_the_object_and_repeat():
    truth = disc(60, 45, 25) & ~disc(60, 45, 20)
    clicks = [random_click(truth, seed) for seed in range(50)]
    assert all(truth[int(y), int(x)] and label == 1 for x, y, label in clicks)
    assert len(set(clicks)) > 40
    assert random_click(truth, 7) == clicks[7]


def test_sam_clicks_first_in_the_widest_part_and_never_twice_on_a_place():
    bar = np.zeros(SIZE_HW, bool)
    bar[40:45, 10:100] = True
    bulb = bar | disc(90, 42, 18)
    assert farthest_click(bulb) == (90.5, 42.5, 1)
    x, y, label = middle_of_error_click(np.zeros_like(bulb), bulb, 0, np.array([[90.5, 42.5]]))
    assert bulb[int(y), int(x)]
    assert label == 1
    assert (x, y) != (90.5, 42.5)


def test_clicks_are_counted_until_the_mask_is_good_enough(two_images):
    """An answer that lacks 30 % of the object until the third click."""

    class Learns(Oracle):
        def segment(self, embedding, prompts):
            answers = super().segment(embedding, prompts)
            for prompt, answer in zip(prompts, answers, strict=True):
                if len(prompt.point_labels) < 3:
                    mask = answer.mask.full()
                    mask.flat[np.flatnonzero(mask)[: int(0.3 * mask.sum())]] = False
                    answer.mask = WindowedMask.from_full(mask)
            return answers

    oracle = Learns()
    config = MeasuringConfig(starts=(), count_clicks=True)
    scores = score_images(oracle, annotated_images(two_images), config=config)
    assert clicks_needed(scores, 0.85) == {"model": {"clicks": 3.0, "failed_percent": 0.0}}
    assert clicks_needed(scores, 0.6) == {"model": {"clicks": 1.0, "failed_percent": 0.0}}
    assert len(oracle.prompts) == 3 * 3  # three objects, none clicked on after it is good
    (curve,) = mean_iou_after_clicks(scores).values()
    assert curve[:2] == pytest.approx([70, 70], abs=0.2)
    assert curve[2:] == [100.0] * 18


def test_an_object_that_is_never_good_counts_as_20_clicks_and_a_failure(two_images):
    oracle = Oracle(MASKS, spoil=lambda mask: np.roll(mask, 9, axis=1))
    config = MeasuringConfig(starts=(), count_clicks=True)
    scores = score_images(oracle, annotated_images(two_images), config=config)
    assert clicks_needed(scores, 0.85) == {"model": {"clicks": 20.0, "failed_percent": 100.0}}
    assert max(len(prompt.point_labels) for prompt in oracle.prompts) == 20


def test_objects_are_grouped_by_pixels_and_by_share_of_the_image():
    def score(area_px, image_px):
        return Score("a", 1, area_px, area_px, image_px, "model", "box", 1.0)

    scores = [score(1023, 10**6), score(1024, 10**6), score(9216, 10**4), score(90_000, 10**5)]
    by_size = {name: len(group) for name, group in by_coco_size(scores).items()}
    assert by_size == {"small": 1, "medium": 1, "large": 2}
    shares = {name: len(group) for name, group in by_share(scores).items()}
    assert shares == {"under 0.3 %": 2, "over 30 %": 2}


def test_specks_that_the_service_removes_are_not_measured(two_images):
    def with_speck(mask):
        spoiled = mask.copy()
        spoiled[:3, :3] = True
        return spoiled

    scores = score_images(Oracle(MASKS, spoil=with_speck), annotated_images(two_images))
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
        score_images(Oracle(MASKS), annotated_images(two_images))
    Image.new("RGB", (10, 10)).save(two_images / "images" / "1.png")
    with pytest.raises(RunError, match="size"):
        score_images(Oracle(MASKS), annotated_images(two_images))
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
    first = score_images(None, annotated_images(two_images), baselines=BaselineScores(cache))
    with cache.open("a") as lines:
        lines.write('{"key": "torn by a k')
    monkeypatch.delattr(cv2, "grabCut")
    again = score_images(None, annotated_images(two_images), baselines=BaselineScores(cache))
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
    assert means["GrabCut"].keys() == {"box", "click"}
    assert "| GrabCut |" in capsys.readouterr().out
    assert (out / "scores.md").read_text().count("\n") == 7
    for name in ("worst_click", "worst_box", "miou_by_clicks", "miou_by_size"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > 800, name


def test_command_counts_clicks_compares_rules_and_measures_ap(tiny_bundle, two_images, tmp_path):
    coco = json.loads((two_images / "annotations.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    boxes = [{key: a[key] for key in keys} | {"score": 1} for a in coco["annotations"]]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    file, images = two_images / "annotations.json", two_images / "images"
    arguments = [str(tiny_bundle), str(file), str(images), "--out", str(tmp_path / "out")]
    arguments += ["--boxes", str(tmp_path / "boxes.json"), "--noc", "--rules", "--threads", "1"]
    assert main([*arguments, "--protocol", "paper", "sam", "--starts", "click"]) == 0
    result = json.loads((tmp_path / "out" / "scores.json").read_text())
    (noc,) = result["clicks_needed"]["85"].values()
    assert 1 <= noc["clicks"] <= 20
    assert len(result["miou_percent"]["all"]) == 2  # a row for each protocol
    assert result["mask_ap_percent"].keys() == {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    rules = result["miou_percent_by_candidate_rule"]
    best = rules[BEST_OF_FOUR]["click by rule"]
    assert all(row["click by rule"] <= best for row in rules.values())
    served = next(iter(result["miou_percent"]["all"].values()))
    assert rules["as served"]["click by rule"] == served["click"]
    table = (tmp_path / "out" / "scores.md").read_text()
    assert "| clicks needed |" in table
    assert "| mask AP, % |" in table


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["none", str(tmp_path), "--baselines"]) == 1
    assert "annotations.json" in capsys.readouterr().err
    assert main([str(tmp_path / "no_bundle"), str(Path(tmp_path))]) == 1
    assert capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(
    two_images, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(evaluate, "score_images", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    command = ["none", str(two_images), "--baselines", "--out", str(tmp_path / "file" / "out")]
    assert main(command) == 1
    assert "could not be made" in capsys.readouterr().err


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
