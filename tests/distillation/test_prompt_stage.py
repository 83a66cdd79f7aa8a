"""The training loop, for real: it learns, it resumes, and its weights are an EdgeSAM checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distillation.batches import TrainingScenes
from distillation.configs import Phase, PromptStageConfig, load_recipe, save_recipe
from distillation.data import RESERVED_SETS
from distillation.prompt_stage import (
    build_optimizer,
    learning_rate,
    normalise,
    prompt_loop_loss,
    train,
)
from edgesam_core.errors import RunError
from edgesam_core.nn.checkpoint import load_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.preprocess import preprocess

RECIPES = sorted((Path(__file__).parents[2] / "distillation" / "recipes").glob("*.yaml"))
CPU = torch.device("cpu")


@pytest.fixture
def config() -> PromptStageConfig:
    phase = Phase(
        steps=4, size=64, batch=2, prompts=2, rounds=2, box_share=0.5, procedural=0.3, pasted=0.3,
        min_area=0.01,
    )  # fmt: skip
    return PromptStageConfig(phases=(phase,), set_weights={"scenes": 1.0}, warmup_steps=2)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_and_leaves_the_reserved_sets_alone(recipe: Path) -> None:
    config = load_recipe(recipe)
    assert config.steps > 0
    assert not RESERVED_SETS & config.set_weights.keys()


def test_the_student_is_shown_what_serving_shows_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    served, _ = preprocess(image, 64)
    trained = normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
    np.testing.assert_allclose(trained.numpy(), served, atol=1e-5)


def test_a_recipe_survives_being_saved(config: PromptStageConfig, tmp_path: Path) -> None:
    save_recipe(config, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == config


def test_an_unknown_key_is_refused_by_name(config: PromptStageConfig, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    save_recipe(config, path)
    path.write_text(path.read_text() + "learnig_rate: 1\n")
    with pytest.raises(RunError, match="learnig_rate"):
        load_recipe(path)


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth(config: PromptStageConfig) -> None:
    longer = dataclasses.replace(config.phases[0], steps=1000)
    config = dataclasses.replace(config, phases=(longer,), warmup_steps=100)
    assert learning_rate(config, 0) < learning_rate(config, 50) < learning_rate(config, 99)
    assert learning_rate(config, 999) == pytest.approx(0.01 * config.learning_rate, rel=0.01)


def test_a_batch_depends_on_seed_and_step_only(
    config: PromptStageConfig, data_folder: Path
) -> None:
    from_start = list(TrainingScenes(config, data_folder))
    resumed = list(TrainingScenes(config, data_folder, start_step=2))
    assert len(from_start) == 4
    assert torch.equal(from_start[2].images, resumed[0].images)
    assert torch.equal(from_start[3].targets, resumed[1].targets)


@pytest.mark.slow
@pytest.mark.parametrize("use_boxes", [True, False], ids=["boxes", "clicks"])
def test_the_student_learns_one_batch_by_heart(
    config: PromptStageConfig, data_folder: Path, use_boxes: bool
) -> None:
    torch.manual_seed(0)
    batch = next(iter(TrainingScenes(config, data_folder)))
    student = EdgeSam().train()
    optimizer = build_optimizer(student, config)
    losses = []
    for _ in range(25):
        loss, ious = prompt_loop_loss(student, batch, config.phases[0], config, use_boxes, CPU)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(ious) == 2
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_a_run_is_resumed_and_its_weights_load_as_an_official_checkpoint(
    config: PromptStageConfig, data_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(config, data_folder, run, init=None, device=CPU)
    longer = dataclasses.replace(config.phases[0], steps=50)
    config = dataclasses.replace(config, phases=(longer,))
    train(config, data_folder, run, init=None, device=CPU)

    weights = read_checkpoint(run / "student.safetensors")
    assert len(weights) == 821
    load_state_dict(EdgeSam(), weights)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50]
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 50
