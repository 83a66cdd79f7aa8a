from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from distillation import ablation
from distillation.ablation import Ablation
from distillation.ablation_report import BY_IOU, COLUMNS, read_rows, save_summary, to_markdown
from distillation.ablation_trials import TRIALS, AblationConfig, load_ablation
from distillation.configs import Phase
from edgesam_core.errors import RunError
from edgesam_core.nn.checkpoint import official_state_dict, read_checkpoint
from tests.core.networks import random_network

RECIPE = Path("distillation/recipes/ablation.yaml")


@pytest.fixture(scope="module")
def data(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered photos, as training set and as what is measured on."""
    root = tmp_path_factory.mktemp("both")
    (root / "open").symlink_to(data_folder / "open")
    (root / "unlabelled").symlink_to(data_folder / "unlabelled")
    (root / "cutouts").symlink_to(data_folder / "cutouts")
    (root / "research_only").symlink_to(data_folder / "open")
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> AblationConfig:
    """The repository's own recipe, cut down to one step a stage at 64 px."""
    weights = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(official_state_dict(random_network()), weights)
    config = load_ablation(RECIPE)
    phase = Phase(steps=1, size=64, batch=2, prompts=2, rounds=2, box_share=0.5, procedural=0,
                  pasted=0, min_area=0.002)  # fmt: skip
    engine: dict[str, Any] = {"warmup_steps_from_weights": 1, "decay_steps": 1, "evaluate_every": 9}
    engine |= {"size": 64, "steps": 1, "batch": 2, "held_back": 1}
    sets = {"scenes": 1.0}
    return dataclasses.replace(
        config,
        teacher=str(weights),
        seeds=(0,),
        measured_sets=("scenes",),
        measured_images=1,
        encoder=dataclasses.replace(config.encoder, **engine),
        prompts=dataclasses.replace(
            config.prompts,
            teacher=str(weights),
            teacher_input_size=64,
            phases=(phase,),
            set_weights=sets,
            held_back=1,
        ),
        granularity=dataclasses.replace(config.granularity, set_weights=sets, **engine),
    )


@pytest.mark.slow
def test_every_trial_is_trained_once_and_measured(
    tiny: AblationConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ablation(tiny, data, tmp_path).run([0])
    rows = read_rows(tmp_path)
    assert {row["trial"] for row in rows} == {trial.name for trial in TRIALS}
    for row in rows:
        columns = set(COLUMNS) - ({BY_IOU} if row["trial"].startswith("granularity") else set())
        assert row["miou_percent"].keys() == columns
        assert all(0 <= score <= 100 for score in row["miou_percent"].values())

    weights = {t.name: Ablation(tiny, data, tmp_path).folder(t.name, 0) for t in TRIALS}
    decoder = "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight"
    of = {
        name: read_checkpoint(weights[name] / "student.safetensors")[decoder]
        for name in ("encoder only", "decoder frozen", "decoder by LoRA", "with corrective clicks",
                     "IoU token distilled")
    }  # fmt: skip
    assert of["decoder frozen"].equal(of["encoder only"])
    assert not of["decoder by LoRA"].equal(of["encoder only"])
    assert not of["with corrective clicks"].equal(of["encoder only"])
    assert not of["IoU token distilled"].equal(of["with corrective clicks"])

    monkeypatch.setattr(ablation, "fit", lambda *_, **__: pytest.fail("trained again"))
    Ablation(tiny, data, tmp_path).run([0])
    table = save_summary(read_rows(tmp_path), tmp_path)
    assert "with corrective clicks" in table
    assert (tmp_path / "ablation.png").stat().st_size > 5000


def test_the_table_has_means_and_spreads_over_seeds() -> None:
    rows = [
        {"trial": "encoder only", "seed": seed, "cpu_minutes": 2.0,
         "miou_percent": dict.fromkeys(COLUMNS, 50.0 + 2 * seed)}
        for seed in range(3)
    ]  # fmt: skip
    assert "| encoder only | 52.0 ± 2.0 |" in to_markdown(rows)
    assert "decoder frozen" not in to_markdown(rows)


def test_an_unknown_key_of_the_recipe_is_named(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(RECIPE.read_text() + "\nmeasured_pictures: 3\n")
    with pytest.raises(RunError, match="measured_pictures"):
        load_ablation(tmp_path / "wrong.yaml")
    (tmp_path / "wrong.yaml").write_text("seeds: [0]")
    with pytest.raises(RunError, match="'teacher' is missing"):
        load_ablation(tmp_path / "wrong.yaml")


def test_photos_that_are_held_back_are_not_learned_from(data: Path, tmp_path: Path) -> None:
    links = ablation.link_photos(data, ["scenes"], tmp_path / "photos")
    annotations = json.loads((data / "open" / "scenes" / "annotations.json").read_text())
    assert len(list(links.iterdir())) == len(annotations["images"]) - 1  # id 10
    with pytest.raises(RunError, match="absent"):
        ablation.link_photos(data, ["absent"], tmp_path / "photos")
