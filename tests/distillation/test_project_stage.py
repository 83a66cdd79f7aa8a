"""Training on a project's labels: what is drawn, who answers, what learns, what a kill loses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distillation import project_batches, project_stage
from distillation.challenger import export_challenger
from distillation.configs import Phase
from distillation.engine import fit
from distillation.feature_cache import FeatureCache
from distillation.network_input import normalise
from distillation.project_batches import ProjectScenes, ProjectStageConfig
from distillation.project_set import load_project_set
from distillation.project_stage import ProjectStage, plan_steps
from distillation.prompt_stage import encode_shown, first_prompts
from distillation.recipe_files import load_recipe
from distillation.replay import GATE_SCENES, replay_scene
from distillation.run_folder import load_checkpoint
from edgesam_core.bundle import Bundle, write_manifest
from edgesam_core.encode import shown_part_hw
from edgesam_core.errors import RunError
from edgesam_core.nn.checkpoint import official_state_dict
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.preprocess import resized_size_hw
from tests import parts
from tests.distillation.snapshots import empty, write_snapshot

SIZE = 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to train from; its graphs are never opened."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("bundles") / "base"
    folder.mkdir()
    save_file(official_state_dict(EdgeSam()), folder / "weights.safetensors")
    for graph in ("encoder.onnx", "decoder.onnx"):
        (folder / graph).write_bytes(b"no graph")
    write_manifest(
        folder,
        name="small",
        input_size=SIZE,
        upsample="bicubic",
        refines_with_mask_input=True,
        draws_prompts=True,
        leaves_out_padding=True,
        licence="CC0-1.0",
        origin="random",
    )
    return folder


@pytest.fixture
def config() -> ProjectStageConfig:
    phase = Phase(
        steps=4, size=SIZE, batch=2, prompts=3, rounds=2, box_share=0.5, procedural=0.4, pasted=0,
        min_area=0,
    )  # fmt: skip
    return ProjectStageConfig(
        phases=(phase,), set_weights={"project": 1.0}, replay_scenes=3, views=3,
        outside_share=0.3, warmup_steps_from_weights=2, save_every=2, held_back=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp("run")) / "snapshot"


@pytest.fixture
def stage(config: ProjectStageConfig, base: Path, snapshot: Path, tmp_path: Path) -> ProjectStage:
    return ProjectStage(config, base, snapshot, tmp_path / "features")


# --- batches ---


def test_a_batch_depends_on_its_step_alone_and_not_on_what_is_cached(
    config: ProjectStageConfig, base: Path, snapshot: Path, tmp_path: Path
) -> None:
    first = ProjectStage(config, base, snapshot, tmp_path / "a").project_scenes
    for step in range(3):
        fresh = first.draw_step(step)
    again = ProjectStage(config, base, snapshot, tmp_path / "b").project_scenes.draw_step(2)
    cached = first.draw_step(2)
    for other in (again, cached):
        torch.testing.assert_close(vars(other), vars(fresh), rtol=0, atol=0)


def test_the_scenes_of_the_gate_are_never_trained_on(
    stage: ProjectStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(
        project_batches, "replay_scene", lambda n, size: drawn.append(n) or replay_scene(n, size)
    )
    for step in range(12):
        stage.project_scenes.draw_step(step)
    assert drawn
    assert min(drawn) >= GATE_SCENES


def test_what_the_trunk_answered_is_what_it_would_answer(stage: ProjectStage) -> None:
    batch = stage.project_scenes.draw_step(0)
    with torch.no_grad():
        now = stage.student.eval().encode(normalise(batch.images))
        kept = stage.embed(stage.student, batch)
    assert (now - kept).abs().max() < 0.01 * now.abs().max()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_padding_that_is_not_served_is_not_trained_on(
    stage: ProjectStage, tmp_path: Path, number: int
) -> None:
    """Of a whole image, that is; what a window shows beyond the image is."""
    size, config = 2 * SIZE, stage.project_scenes.config
    larger = dataclasses.replace(config.phases[0], size=size)
    scenes = ProjectScenes(
        dataclasses.replace(config, phases=(larger,)),
        stage.project_scenes.images,
        FeatureCache(stage.student.image_encoder.backbone, tmp_path / "unpadded"),
        leaves_out_padding=True,
    )
    asked = scenes.ask_view(np.random.default_rng(0), scenes.images[0], number)
    assert asked is not None
    batch = scenes.assemble([asked])
    images = normalise(batch.images)
    with torch.no_grad():
        kept = stage.embed(stage.student.eval(), batch)
        expected = stage.student.encode(images)
        if number < 2:
            shown_hw = resized_size_hw(scenes.images[0].image.shape[:2], size)
            assert shown_part_hw(shown_hw) == (96, 128)
            expected = encode_shown(stage.student, images, shown_hw)
    assert (expected - kept).abs().max() < 0.01 * expected.abs().max()


def test_a_torn_file_of_features_is_made_again(stage: ProjectStage, tmp_path: Path) -> None:
    batch = stage.project_scenes.draw_step(1)
    for file in (tmp_path / "features").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    for one, two in zip(stage.project_scenes.draw_step(1).features, batch.features, strict=True):
        assert all(map(torch.equal, one, two))


def test_the_base_answers_outside_the_regions_and_the_annotators_inside(
    stage: ProjectStage,
) -> None:
    batches = (stage.project_scenes.draw_step(step) for step in range(20))
    batch = next(b for b in batches if b.from_base.any() and not b.from_base.all())
    outside = batch.from_base.flatten()
    prompts = first_prompts(batch)
    answer = stage.teacher.for_batch(batch).answer(prompts)
    truth = batch.targets.flatten(0, 1).float() / 255
    assert not truth[outside].any()
    assert torch.equal(answer.targets[~outside, 0], truth[~outside])
    with torch.no_grad():
        images = batch.images.repeat_interleave(3, dim=0)[outside]
        embedding = stage.student.eval().encode(normalise(images))
        asked = {k: v[outside] for k, v in vars(prompts).items() if v is not None}
        logits, _ = stage.student.decode(embedding, **asked)
    same = (logits[:, 0] > 0) == (answer.targets[outside, 0] > 0.5)
    assert same.float().mean() > 0.99


# --- learning ---


def test_neck_and_decoder_learn_and_the_trunk_does_not(
    stage: ProjectStage, config: ProjectStageConfig, tmp_path: Path
) -> None:
    before = {k: v.clone() for k, v in stage.student.state_dict().items()}
    fit(stage, config, tmp_path / "run", from_weights=True)
    moved = {k for k, v in stage.student.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in moved} == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert not any(k.startswith("image_encoder.backbone.") for k in moved)


def test_a_run_that_was_killed_ends_with_the_same_bits(
    config: ProjectStageConfig,
    base: Path,
    snapshot: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stage(name: str) -> ProjectStage:
        return ProjectStage(config, base, snapshot, tmp_path / name / "features")

    fit(stage("whole"), config, tmp_path / "whole", from_weights=True)
    torn = stage("torn")
    real = torn.project_scenes.draw_step
    monkeypatch.setattr(
        torn.project_scenes, "draw_step", lambda s, rank: real(s, rank) if s < 3 else _kill()
    )
    with pytest.raises(KeyboardInterrupt):
        fit(torn, config, tmp_path / "torn", from_weights=True)
    fit(stage("torn"), config, tmp_path / "torn", from_weights=True)
    whole, resumed = (load_checkpoint(tmp_path / name) for name in ("whole", "torn"))
    assert whole is not None
    assert resumed is not None
    for key, tensor in whole["averaged"].items():
        assert torch.equal(tensor, resumed["averaged"][key]), key


def _kill() -> None:
    raise KeyboardInterrupt


def test_a_diverging_run_leaves_no_challenger(
    config: ProjectStageConfig, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_snapshot(tmp_path / "run")
    (run / "training").mkdir()
    weights = {k: v.clone() for k, v in official_state_dict(EdgeSam()).items()}
    next(v for v in weights.values() if v.is_floating_point()).fill_(float("nan"))
    save_file(weights, run / "training" / "student.safetensors")
    train_set = load_project_set(run / "snapshot" / "train.json", run / "snapshot" / "images")
    with pytest.raises(RunError, match="diverged"):
        export_challenger(base, run, train_set, 4)
    assert not (run / "challenger").exists()


def test_masks_that_are_all_empty_are_refused_with_a_sentence(
    config: ProjectStageConfig, base: Path, tmp_path: Path
) -> None:
    snapshot = write_snapshot(tmp_path / "run", spoil_train=empty) / "snapshot"
    with pytest.raises(RunError, match=r"no annotated region to learn from\. Label more"):
        ProjectStage(config, base, snapshot, tmp_path / "features")


# --- budget ---


def test_minutes_become_steps_once(
    stage: ProjectStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project_stage, "seconds_per_step", lambda stage: 20.0)
    monkeypatch.setattr(project_stage, "FEWEST_STEPS", 2)
    assert plan_steps(stage, tmp_path, minutes=1, steps=None) == 3
    assert plan_steps(stage, tmp_path, minutes=60, steps=None) == 3  # as it was planned


@pytest.mark.parametrize(("minutes", "steps", "planned"), [(60, None, 4), (None, 2, 2), (1, 2, 2)])
def test_the_smallest_budget_counts(
    stage: ProjectStage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    minutes: float | None,
    steps: int | None,
    planned: int,
) -> None:
    monkeypatch.setattr(project_stage, "seconds_per_step", lambda stage: 20.0)
    monkeypatch.setattr(project_stage, "FEWEST_STEPS", 2)
    assert plan_steps(stage, tmp_path, minutes=minutes, steps=steps) == planned


def test_a_budget_in_which_nothing_fits_is_refused(
    stage: ProjectStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project_stage, "seconds_per_step", lambda stage: 100.0)
    with pytest.raises(RunError, match="Only 0 steps fit into 1 minutes"):
        plan_steps(stage, tmp_path, minutes=1, steps=None)


def test_timing_leaves_no_gradient_behind(stage: ProjectStage) -> None:
    assert project_stage.seconds_per_step(stage) > 0
    assert all(p.grad is None for p in stage.student.parameters())


def test_the_recipe_is_read() -> None:
    recipe = parts.REPOSITORY / "distillation" / "recipes" / "project.yaml"
    assert load_recipe(recipe, ProjectStageConfig).steps > 0


# --- the command ---


@pytest.mark.slow
def test_the_challenger_is_run_as_its_base_and_says_where_it_comes_from(
    config: ProjectStageConfig, base: Path, tmp_path: Path
) -> None:
    from distillation.recipe_files import save_recipe

    run = write_snapshot(tmp_path / "run")
    save_recipe(dataclasses.replace(config), tmp_path / "recipe.yaml")
    project_stage.train(tmp_path / "recipe.yaml", run, base, steps=2)
    challenger = Bundle.open(run / "challenger").manifest
    served = Bundle.open(base).manifest
    for name in (
        "input_size",
        "draws_prompts",
        "refines_with_mask_input",
        "licence",
        "upsample",
        "leaves_out_padding",
    ):
        assert getattr(challenger, name) == getattr(served, name)
    assert challenger.version != served.version
    assert "in 2 steps on 12 regions of 6 tasks of project 3" in challenger.origin
    assert served.version in challenger.origin
    rows = [json.loads(x) for x in (run / "training" / "log.jsonl").read_text().splitlines()]
    assert any("eta_min" in row for row in rows)
    assert any("held_back" in row for row in rows)
    project_stage.train(tmp_path / "recipe.yaml", run, base, steps=2)  # nothing left to do
