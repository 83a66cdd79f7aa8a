"""Stage 3, for real: it learns, the model under it does not, and its weights become a bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillation.configs import GranularityStageConfig
from distillation.data import RESERVED_SETS
from distillation.engine import fit
from distillation.granularity_stage import GranularityStage, read_frozen
from distillation.labelled_boxes import BoxBatch, LabelledBoxes
from distillation.recipe_files import load_recipe, save_recipe
from edgesam_core.errors import EdgeSamError, RunError
from edgesam_core.nn.checkpoint import official_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.granularity import GranularityPrior, build_granularity_prior
from tests.parts import REPOSITORY

SIZE = 128


@pytest.fixture(scope="module")
def config() -> GranularityStageConfig:
    return GranularityStageConfig(
        steps=3, set_weights={"scenes": 1.0}, size=SIZE, batch=2, held_back=1, warmup_steps=2,
        decay_steps=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of EdgeSAM with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "edge_sam.pth"
    torch.save(official_state_dict(EdgeSam()), path)
    return path


@pytest.fixture(scope="module")
def stage(config: GranularityStageConfig, model: Path, data_folder: Path) -> GranularityStage:
    return GranularityStage(config, model, data_folder)


def test_a_batch_depends_on_seed_step_and_rank_only(
    config: GranularityStageConfig, data_folder: Path
) -> None:
    photos = LabelledBoxes(config, data_folder)
    from_start = list(photos)
    (resumed,) = photos.starting_at(2, 0)
    (elsewhere,) = photos.starting_at(2, 1)
    assert len(from_start) == 3
    assert torch.equal(from_start[2].images, resumed.images)
    assert torch.equal(from_start[2].boxes, resumed.boxes)
    assert not torch.equal(resumed.images, elsewhere.images)


def test_every_labelled_object_of_a_crop_has_its_box(
    config: GranularityStageConfig, data_folder: Path
) -> None:
    batch = LabelledBoxes(config, data_folder).draw_step(0)
    assert batch.images.shape == (2, 3, SIZE, SIZE)
    assert set(batch.image_of_box.tolist()) == {0, 1}
    sides = batch.boxes[:, 2:] - batch.boxes[:, :2]
    assert (sides > 0).all()
    assert (batch.boxes >= 0).all()
    assert (batch.boxes <= SIZE).all()


@pytest.mark.slow
def test_the_loss_falls_and_the_model_under_it_stays(stage: GranularityStage) -> None:
    batch: BoxBatch = stage.photos.draw_step(0)
    before = {key: value.clone() for key, value in stage.model.state_dict().items()}
    stage.train()
    optimizer = torch.optim.AdamW(stage.student.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        result = stage(batch)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.loss.item())
    assert losses[-1] < 0.7 * losses[0]
    after = stage.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(parameter.requires_grad for parameter in stage.model.parameters())


@pytest.mark.slow
def test_a_run_ends_with_a_checkpoint_of_both_networks_and_numbers_about_clicks(
    config: GranularityStageConfig, model: Path, data_folder: Path, tmp_path: Path
) -> None:
    fit(GranularityStage(config, model, data_folder), config, tmp_path)
    weights = read_checkpoint(tmp_path / "student.safetensors")
    assert len(weights) == 1253
    original = read_checkpoint(model)
    assert all(torch.equal(weights[key], value) for key, value in original.items())
    assert build_granularity_prior(weights) is not None
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    held_back = next(row["held_back"] for row in rows if "held_back" in row)
    assert held_back.keys() == {"click_iou", "best_iou", "mean_iou", "recall"}
    assert (tmp_path / "samples_000003.png").exists()
    assert load_recipe(tmp_path / "recipe.yaml", GranularityStageConfig) == config


def test_the_recipe_is_read_and_leaves_the_reserved_sets_alone() -> None:
    path = REPOSITORY / "distillation" / "recipes" / "granularity.yaml"
    recipe = load_recipe(path, GranularityStageConfig)
    assert not RESERVED_SETS & recipe.set_weights.keys()


def test_a_recipe_survives_being_saved(config: GranularityStageConfig, tmp_path: Path) -> None:
    save_recipe(config, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml", GranularityStageConfig) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [({"size": 100}, "size"), ({"steps": 0}, "steps"), ({"set_weights": {}}, "set")],
)
def test_a_recipe_that_cannot_work_is_refused_by_name(
    config: GranularityStageConfig, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RunError, match=said):
        dataclasses.replace(config, **change)


def test_a_bundle_of_another_size_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(RunError, match=r"256 pixels.*128"):
        read_frozen(tiny_bundle, SIZE)
    assert not read_frozen(tiny_bundle, 256).training


def test_weights_without_a_prior_to_start_from_are_refused(
    config: GranularityStageConfig, model: Path, data_folder: Path
) -> None:
    with pytest.raises(EdgeSamError, match="no granularity prior"):
        GranularityStage(config, model, data_folder, init=model)


def test_a_prior_of_another_trunk_is_refused_by_file(
    config: GranularityStageConfig, model: Path, data_folder: Path, tmp_path: Path
) -> None:
    prior = tmp_path / "prior.pth"
    torch.save(GranularityPrior([8, 8, 8]).state_dict(), prior)
    with pytest.raises(RunError, match=r"prior\.pth: .* of another model"):
        GranularityStage(config, model, data_folder, init=prior)


def test_the_average_of_the_prior_is_asked_through_the_code_that_serves(
    stage: GranularityStage,
) -> None:
    bias = stage.student.rpn_head.cls_header.pointwise_conv.bias
    assert bias is not None
    with torch.no_grad():
        kept = bias.clone()
        bias.fill_(3.0)  # every anchor is an object: proposals everywhere
    evaluation = stage.evaluate(stage.student.eval())
    with torch.no_grad():
        bias.copy_(kept)
    assert evaluation.scores["recall"] > 0
    assert evaluation.scores["best_iou"] != evaluation.scores["click_iou"]
    assert evaluation.sheet is not None
    assert evaluation.sheet.dtype == np.uint8
