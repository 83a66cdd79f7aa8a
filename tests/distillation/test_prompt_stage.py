"""Stage 2, for real: it learns, from masks and from a network, and goes on where it was killed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distillation import batches
from distillation.batches import TrainingScenes, held_back_batches
from distillation.configs import Phase, PromptStageConfig
from distillation.data import RESERVED_SETS
from distillation.engine import fit
from distillation.network_input import normalise
from distillation.optimisation import build_optimizer
from distillation.prompt_stage import PromptStage, compared_masks, encode_shown, first_prompts
from distillation.recipe_files import load_recipe, save_recipe
from distillation.run_folder import load_checkpoint
from distillation.step_batches import draw_in_workers
from distillation.teachers import TeacherAnswer
from edgesam_core.encode import Encoder
from edgesam_core.errors import RunError
from edgesam_core.export.encoder import export_encoder
from edgesam_core.nn.checkpoint import load_state_dict, official_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.preprocess import preprocess
from edgesam_core.session import open_session
from tests import parts

RECIPES = [
    path
    for path in sorted((parts.REPOSITORY / "distillation" / "recipes").glob("*.yaml"))
    if "\nphases:" in path.read_text() and path.stem != "project"
]


@pytest.fixture
def config() -> PromptStageConfig:
    phase = Phase(
        steps=4, size=64, batch=2, prompts=2, rounds=2, box_share=0.5, procedural=0.3, pasted=0.3,
        min_area=0.01,
    )  # fmt: skip
    return PromptStageConfig(
        phases=(phase,), set_weights={"scenes": 1.0}, warmup_steps=2, save_every=2, held_back=2
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the published layout."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "edge_sam.pth"
    torch.save(official_state_dict(EdgeSam()), path)
    return path


def with_phase(config: PromptStageConfig, **changes: Any) -> PromptStageConfig:
    phase = dataclasses.replace(config.phases[0], **changes)
    return dataclasses.replace(config, phases=(phase,))


# --- recipes ---


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_and_leaves_the_reserved_sets_alone(recipe: Path) -> None:
    config = load_recipe(recipe, PromptStageConfig)
    assert config.steps > 0
    assert not RESERVED_SETS & config.set_weights.keys()


def test_a_recipe_survives_being_saved(config: PromptStageConfig, tmp_path: Path) -> None:
    save_recipe(config, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml", PromptStageConfig) == config


@pytest.mark.parametrize(
    ("line", "named"),
    [
        pytest.param("learnig_rate: 1", "learnig_rate", id="unknown key"),
        pytest.param("decoder: thawed", "decoder: expected trained, frozen or lora", id="value"),
        pytest.param("hard_mask_weighting: true", "need a network", id="contradiction"),
        pytest.param("seed: [", "recipe.yaml", id="no YAML"),
        pytest.param(
            "learning_rate: 1e-3", r"learning_rate: .* number, got '1e-3' .*1\.0e-3", id="text"
        ),
        pytest.param("set_weights: {scenes: 5e-1}", "set_weights, scenes: .*'5e-1'", id="share"),
        pytest.param("set_weights: scenes", "set_weights: expected dict", id="no table"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(
    config: PromptStageConfig, tmp_path: Path, line: str, named: str
) -> None:
    path = tmp_path / "recipe.yaml"
    save_recipe(config, path)
    key = line.split(":")[0]
    kept = [old for old in path.read_text().splitlines() if not old.startswith(key)]
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(RunError, match=named):
        load_recipe(path, PromptStageConfig)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected a table, got None"),
        ("phases: 3", "phases: expected a list of tables, got 3"),
        ("phases: [{steps: many}]", "steps: expected int, got 'many'"),
        ("phases: [{steps: 0, size: 64, batch: 1, prompts: 1, rounds: 1, box_share: 1,"
         " procedural: 1, pasted: 0, min_area: 0}]", "steps: expected at least 1"),
    ],
)  # fmt: skip
def test_a_recipe_of_another_form_is_refused_with_its_name(
    tmp_path: Path, text: str, named: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RunError, match=rf"recipe\.yaml: {named}"):
        load_recipe(tmp_path / "recipe.yaml", PromptStageConfig)


# --- what a step is given ---


def test_the_student_is_shown_what_serving_shows_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    served, _ = preprocess(image, 64)
    trained = normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
    np.testing.assert_allclose(trained.numpy(), served, atol=1e-5)


def test_a_batch_depends_on_seed_step_and_process_only(
    config: PromptStageConfig, data_folder: Path
) -> None:
    scenes = TrainingScenes(config, data_folder)
    from_start, resumed = list(scenes), list(scenes.starting_at(2, rank=0))
    other = list(scenes.starting_at(0, rank=1))
    assert len(from_start) == 4
    assert torch.equal(from_start[2].images, resumed[0].images)
    assert torch.equal(from_start[3].targets, resumed[1].targets)
    assert not torch.equal(from_start[0].images, other[0].images)
    for one, two in zip(from_start, other, strict=True):  # the same work, so that none waits
        assert (one.rounds, one.starts_with_box) == (two.rounds, two.starts_with_box)


def test_steps_start_with_boxes_and_clicks_and_have_one_to_so_many_rounds(
    config: PromptStageConfig, data_folder: Path
) -> None:
    scenes = TrainingScenes(with_phase(config, steps=40, batch=1, prompts=1, rounds=3), data_folder)
    drawn = [scenes.draw_step(step) for step in range(40)]
    assert {batch.rounds for batch in drawn} == {1, 2, 3}
    assert 10 < sum(batch.starts_with_box for batch in drawn) < 30


def test_only_a_recipe_that_pastes_needs_cutouts_and_grounds(
    config: PromptStageConfig, data_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "open").symlink_to(data_folder / "open")
    TrainingScenes(with_phase(config, pasted=0.0), tmp_path).draw_step(0)
    with pytest.raises(RunError, match=r"no cut-outs .* in .*cutouts"):
        TrainingScenes(config, tmp_path)
    (tmp_path / "cutouts").symlink_to(data_folder / "cutouts")
    with pytest.raises(RunError, match=r"no photo .* in .*unlabelled"):
        TrainingScenes(config, tmp_path)


def test_objects_that_no_crop_shows_are_not_looked_for_for_ever(
    config: PromptStageConfig, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_DRAWS", 20)
    config = with_phase(config, procedural=0.0, pasted=0.0, min_area=2.0)
    with pytest.raises(RunError, match="min_area: none of 20 crops"):
        TrainingScenes(config, data_folder).draw_step(0)


def test_what_is_wrong_with_a_step_in_a_worker_is_told_without_its_traceback(
    config: PromptStageConfig, data_folder: Path, tmp_path: Path
) -> None:
    for name in ("open", "unlabelled"):
        (tmp_path / name).symlink_to(data_folder / name)
    shutil.copytree(data_folder / "cutouts", tmp_path / "cutouts")
    for cutout in (tmp_path / "cutouts").glob("*/*"):
        cutout.write_bytes(b"no picture")
    scenes = TrainingScenes(with_phase(config, procedural=0.0, pasted=1.0), tmp_path)
    with pytest.raises(RunError) as told:
        list(draw_in_workers(scenes))
    assert re.fullmatch(r"The cut-out .*\.webp could not be read\.", told.value.sentence)


def test_what_an_oblong_step_encodes_is_what_a_graph_without_padding_does(
    config: PromptStageConfig, data_folder: Path, tmp_path: Path
) -> None:
    student = EdgeSam().eval()
    path = tmp_path / "encoder.onnx"
    export_encoder(student, path, input_size=128, leaves_out_padding=True)
    encoder = Encoder(
        open_session(path, 1), input_size=128, bundle_version="x", leaves_out_padding=True
    )
    picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    x, shown_hw = preprocess(picture, 128)
    with torch.no_grad():
        trained = encode_shown(student, torch.from_numpy(x), shown_hw).numpy()
    served = encoder.encode(picture).image_embedding
    np.testing.assert_allclose(trained, served, atol=1e-4 * np.abs(served).max())


def test_oblong_steps_ask_only_about_what_they_show(
    config: PromptStageConfig, data_folder: Path
) -> None:
    stage = PromptStage(with_phase(config, steps=8, oblong=0.5), data_folder)
    drawn = [stage.scenes.draw_step(step) for step in range(8)]
    oblong = [batch for batch in drawn if batch.shown_hw is not None]
    assert 0 < len(oblong) < 8
    for batch in oblong:
        assert batch.shown_hw is not None
        height, width = batch.shown_hw
        assert not batch.valid[:, -(-height // 4) :].any()
        assert not batch.valid[:, :, -(-width // 4) :].any()
        assert (batch.targets.flatten(2).amax(dim=2) > 127).all()
        assert (batch.points.amax(dim=(0, 1)) < torch.tensor([width, height])).all()
        loss, _ = stage(batch)
        assert loss.isfinite()


def test_padding_is_told_from_image(config: PromptStageConfig, data_folder: Path) -> None:
    scenes = TrainingScenes(with_phase(config, steps=8, procedural=0.0, pasted=0.0), data_folder)
    mean_colour = torch.tensor([124, 116, 104], dtype=torch.uint8)
    seen = 0
    for batch in scenes:
        is_padding = (batch.images == mean_colour[None, :, None, None]).all(dim=1)  # [I, S, S]
        cells = is_padding.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).float().mean(dim=3)
        seen += int((cells == 1).sum())
        assert ((batch.valid == 0) <= (cells > 0.5)).all()
        assert (batch.valid[cells == 0] > 200).all()  # image, but for the border of the window
    assert seen > 0


def test_held_back_images_are_the_same_every_time_and_none_is_trained_on(
    config: PromptStageConfig, data_folder: Path
) -> None:
    sets = TrainingScenes(config, data_folder).held_back_sets
    assert [len(images) for images in sets] == [1]
    one, two = held_back_batches(config, sets), held_back_batches(config, sets)
    assert len(one) == 1
    assert torch.equal(one[0].images, two[0].images)


def test_a_click_is_drawn_against_the_mask_that_the_teacher_trusts() -> None:
    logits = torch.arange(8.0).reshape(2, 4, 1, 1)
    answer = TeacherAnswer(10 * logits, torch.tensor([3, 1]), None)
    shown, wanted = compared_masks(logits, answer)
    assert shown.flatten().tolist() == [3.0, 5.0]
    assert wanted.flatten().tolist() == [30.0, 50.0]


# --- what it learns ---


@pytest.mark.slow
@pytest.mark.parametrize("use_boxes", [True, False], ids=["boxes", "clicks"])
def test_the_student_learns_one_batch_by_heart(
    config: PromptStageConfig, data_folder: Path, use_boxes: bool
) -> None:
    stage = PromptStage(config, data_folder)
    batch = dataclasses.replace(stage.scenes.draw_step(0), starts_with_box=use_boxes, rounds=2)
    optimizer = build_optimizer(stage.student, config)
    stage.train()
    losses = []
    for _ in range(25):
        loss, metrics = stage(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert set(metrics) == (
        {"box_iou", "box_last_iou"} if use_boxes else {"click_iou", "click_last_iou"}
    )
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["trained", "frozen", "lora"])
def test_a_network_teaches_and_the_decoder_learns_as_the_recipe_says(
    config: PromptStageConfig, data_folder: Path, tmp_path: Path, weights: Path, decoder: Any
) -> None:
    config = dataclasses.replace(
        with_phase(config, steps=2, rounds=2, fewest_rounds=2), teacher=str(weights),
        teacher_input_size=64, starts_from_teacher=True, decoder=decoder, prompt_encoder="frozen",
        draws_prompts=False, hard_mask_weighting=True, ema_decay=0.0,
    )  # fmt: skip
    fit(PromptStage(config, data_folder), config, tmp_path)
    before, after = read_checkpoint(weights), read_checkpoint(tmp_path / "student.safetensors")
    load_state_dict(EdgeSam(), after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("image_encoder") for name in changed)
    assert not any(name.startswith("prompt_encoder") for name in changed)
    in_decoder = {name for name in changed if name.startswith("mask_decoder")}
    projections = {
        n for n in before if "mask_decoder" in n and n.endswith(("q_proj.weight", "v_proj.weight"))
    }
    assert {"trained": in_decoder > projections, "frozen": not in_decoder,
            "lora": in_decoder == projections}[decoder]  # fmt: skip


def test_the_loss_is_the_teachers_where_there_is_one(
    config: PromptStageConfig, data_folder: Path, weights: Path
) -> None:
    """A student that is its teacher differs from it only by the threshold of the targets."""
    config = dataclasses.replace(
        config, teacher=str(weights), teacher_input_size=64, starts_from_teacher=True,
        draws_prompts=False, iou_weight=1.0,
    )  # fmt: skip
    stage = PromptStage(config, data_folder, init=weights).eval()
    batch = dataclasses.replace(stage.scenes.draw_step(0), rounds=1, starts_with_box=False)
    with torch.no_grad():
        answer = stage.teacher.for_batch(batch).answer(first_prompts(batch))
        embedding = stage.student.encode(normalise(batch.images)).repeat_interleave(2, dim=0)
        logits, iou_predictions = stage.student.decode(embedding, **vars(first_prompts(batch)))
        loss, metrics = stage(batch)
    torch.testing.assert_close(iou_predictions, answer.iou_predictions, rtol=1e-3, atol=1e-4)
    assert answer.targets.shape == logits.shape == (4, 4, 16, 16)
    assert metrics["click_iou"] > 0.95
    valid = (batch.valid.float() / 255).repeat_interleave(2, dim=0)[:, None]
    bce = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, answer.targets, weight=valid.expand_as(logits), reduction="none"
    ).sum(dim=(-2, -1)) / valid.sum(dim=(-2, -1))
    p, t = logits.sigmoid() * valid, answer.targets * valid
    dice = 1 - (2 * (p * t).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + t.sum((-2, -1)) + 1)
    torch.testing.assert_close(loss, 5 * (bce + dice).mean(), rtol=1e-4, atol=1e-4)


def test_what_does_not_learn_needs_weights(config: PromptStageConfig, data_folder: Path) -> None:
    config = dataclasses.replace(config, decoder="lora")
    with pytest.raises(RunError, match="needs weights"):
        PromptStage(config, data_folder)


# --- runs ---


def command(recipe: Path, data: Path, run: Path, *more: str) -> list[str]:
    return ["-m", "distillation.prompt_stage", str(recipe), str(data), str(run), *more]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=parts.REPOSITORY, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits_and_an_official_checkpoint(
    config: PromptStageConfig, data_folder: Path, tmp_path: Path
) -> None:
    config = with_phase(config, steps=8)
    save_recipe(config, tmp_path / "recipe.yaml")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(command(tmp_path / "recipe.yaml", data_folder, killed, "--threads", "1"))
    deadline = time.monotonic() + 200
    while not (killed / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    told, _ = process.communicate()
    state = load_checkpoint(killed)
    assert state is not None, told
    assert state["step"] < 8

    for run in (killed, whole):
        fit(PromptStage(config, data_folder), config, run)
    ends = [read_checkpoint(run / "student.safetensors") for run in (killed, whole)]
    assert len(ends[0]) == 821
    load_state_dict(EdgeSam(), ends[0])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    rows = [json.loads(line) for line in (killed / "log.jsonl").read_text().splitlines()]
    assert set(rows[-1]["held_back"]) == {"box_iou", "click_iou"}
    sheet = np.asarray(Image.open(killed / "samples_000008.png"))
    assert sheet.shape[2] == 3
    assert sheet.std() > 10


@pytest.mark.slow
def test_two_processes_train_it_together(
    config: PromptStageConfig, data_folder: Path, tmp_path: Path
) -> None:
    config = with_phase(config, steps=3)
    save_recipe(config, tmp_path / "recipe.yaml")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = tmp_path / "run"
    process = start(launcher + command(tmp_path / "recipe.yaml", data_folder, run))
    told, _ = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert "2 processes" in told
    state = load_checkpoint(run)
    assert state is not None
    assert state["step"] == 3
    # One process goes on where two stopped.
    longer = with_phase(config, steps=4)
    fit(PromptStage(longer, data_folder), longer, run)


# --- bad input ---


@pytest.fixture
def broken_data(data_folder: Path, tmp_path: Path) -> Path:
    """Three copies of a good set: an unreadable image, an empty mask, an image of another size."""
    root = tmp_path / "data"
    for name in ("unreadable", "empty", "resized"):
        shutil.copytree(data_folder / "open" / "scenes", root / "open" / name)
    (root / "open" / "unreadable" / "images" / "scene_3.png").write_bytes(b"no image")
    path = root / "open" / "empty" / "annotations.json"
    coco = json.loads(path.read_text())
    coco["annotations"][0]["segmentation"] = {"size": [160, 160], "counts": [160 * 160]}
    path.write_text(json.dumps(coco))
    Image.new("RGB", (40, 30)).save(root / "open" / "resized" / "images" / "scene_5.png")
    return root


def test_all_that_is_wrong_with_the_data_is_named_before_training(
    config: PromptStageConfig, broken_data: Path
) -> None:
    config = dataclasses.replace(
        config, set_weights={"unreadable": 1, "empty": 1, "resized": 1, "absent": 1}
    )
    with pytest.raises(RunError) as told:
        PromptStage(config, broken_data, init=broken_data / "absent.pth")
    sentence = told.value.sentence
    reasons = ("scene_3.png", "scene_1.png", "is empty", "scene_5.png", "absent: ", "absent.pth")
    for reason in reasons:
        assert reason in sentence, sentence


def test_weights_of_another_architecture_are_named_by_file(
    config: PromptStageConfig, data_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(RunError, match=r"resnet\.pth"):
        PromptStage(config, data_folder, init=path)
    with pytest.raises(RunError, match=r"resnet\.pth"):
        PromptStage(dataclasses.replace(config, teacher=str(path)), data_folder)


@pytest.mark.slow
def test_the_command_says_what_is_wrong_in_a_sentence_and_leaves_no_run_behind(
    config: PromptStageConfig, broken_data: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, set_weights={"resized": 1.0})
    save_recipe(config, tmp_path / "recipe.yaml")
    process = start(command(tmp_path / "recipe.yaml", broken_data, tmp_path / "run"))
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "scene_5.png" in told
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()
