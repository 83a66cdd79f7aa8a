"""Stage 1, for real: photos, a stored teacher, and a student whose embedding moves towards it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distillation import encoder_stage
from distillation.configs import EncoderStageConfig
from distillation.encoder_stage import EncoderStage, split_store, to_grid
from distillation.recipe_files import load_recipe, save_recipe
from distillation.synth import procedural_scene
from distillation.teacher_embeddings import embed
from distillation.teachers import NetworkTeacher
from edgesam_core.errors import RunError
from edgesam_core.nn.checkpoint import load_state_dict, official_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam

CONFIG = EncoderStageConfig(
    steps=4, teacher="big", size=64, batch=2, learning_rate=2e-3, warmup_steps=2, decay_steps=1,
    evaluate_every=4, save_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos of 60 x 40, the weights of a teacher, and its embeddings at 128."""
    root = tmp_path_factory.mktemp("stage_1")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        scene = procedural_scene(rng, 60).image[:40]
        Image.fromarray(scene).save(root / "images" / f"{number}.png")
    torch.manual_seed(7)
    network = EdgeSam()
    torch.save(official_state_dict(network), root / "big.pth")
    embed(NetworkTeacher(network, name="big", input_size=128), root / "images", root / "store")
    return root


@pytest.fixture
def build(material: Path) -> Callable[..., EncoderStage]:
    """A function that opens the stage, with fields of the recipe changed."""

    def make(decoder: Path | None = None, init: Path | None = None, **fields: Any) -> EncoderStage:
        config = dataclasses.replace(CONFIG, **fields)
        return EncoderStage(
            config, material / "images", material / "store", init=init, decoder=decoder
        )

    return make


def test_a_students_cell_learns_the_mean_of_the_teachers_cells_in_it() -> None:
    teacher = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert to_grid(teacher, 2).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert torch.equal(to_grid(teacher, 4), teacher)


def test_the_loss_and_its_gradient_are_those_worked_out_in_numpy(
    build: Callable[..., EncoderStage],
) -> None:
    stage = build().eval()
    batch = stage.load(stage.learned_from[:2])
    seen: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    stage.student.image_encoder.register_forward_hook(keep)
    loss = stage(batch).loss
    loss.backward()
    student = seen[0].detach().numpy().astype(np.float64)
    stored = [stage.store.read(e.name).astype(np.float64) for e in stage.learned_from[:2]]
    teacher = np.stack(stored).reshape(2, 256, 4, 2, 4, 2).mean(axis=(3, 5))
    # A photo of 60 x 40 fills 64 x 43 pixels: two rows of cells, and 11 of 16 pixels of a third.
    valid = np.zeros((2, 1, 4, 4))
    valid[:, :, :3] = 1
    np.testing.assert_array_equal(batch.valid[:, None], valid)
    difference = (student - teacher) * valid
    assert loss.item() == pytest.approx((difference**2).sum() / (2 * 12 * 256), rel=1e-5)
    gradient = 2 * difference / (2 * 12 * 256)
    assert seen[0].grad is not None
    np.testing.assert_allclose(seen[0].grad, gradient, rtol=1e-4, atol=1e-9)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    material: Path, build: Callable[..., EncoderStage]
) -> None:
    stage = build(init=material / "big.pth", size=128).eval()
    evaluation = stage.evaluate(stage.student)
    # What is left is the rounding to fp16: 2^-12 of a value, squared.
    assert 0 < evaluation.scores["embedding_error"] < 1e-6
    assert evaluation.sheet is not None
    assert evaluation.sheet.shape == (192, 3 * 192, 3)
    photo, teacher, student = np.split(evaluation.sheet.astype(int), 3, axis=1)
    assert np.abs(teacher - student).max() <= 1
    assert np.abs(photo - teacher).max() > 50


def test_every_photo_is_seen_once_an_epoch_and_held_back_ones_never(
    build: Callable[..., EncoderStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = build(batch=1)
    monkeypatch.setattr(stage, "load", lambda entries: [entry.name for entry in entries])
    by_rank: list[Any] = [encoder_stage._Photos(stage).starting_at(0, rank, 2) for rank in (0, 1)]
    seen = [name for step in range(7) for photos in by_rank for name in photos.draw_step(step)]
    learned_from = sorted(entry.name for entry in stage.learned_from)
    assert sorted(seen[:7]) == sorted(seen[7:]) == learned_from
    assert seen[:7] != seen[7:]
    assert len(learned_from) == 7
    held_back, _ = split_store(stage.store, 32)
    assert not {entry.name for entry in held_back} & set(seen)


def test_a_batch_depends_on_seed_step_and_process_only(build: Callable[..., EncoderStage]) -> None:
    from_start = list(build().batches(0, 0, 1))
    resumed = list(build().batches(2, 0, 1))
    assert len(from_start) == 4
    assert torch.equal(from_start[3].images, resumed[1].images)
    assert torch.equal(from_start[3].teacher_embeddings, resumed[1].teacher_embeddings)
    assert not torch.equal(from_start[2].images, from_start[3].images)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"teacher": "sam_vit_h"}, "teacher of these embeddings is big", id="teacher"),
        pytest.param({"size": 192}, "128 is no multiple of the student's 192", id="size"),
    ],
)
def test_a_store_that_does_not_fit_is_refused_before_training(
    build: Callable[..., EncoderStage], fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(RunError, match=reason):
        build(**fields)


def test_photos_that_are_gone_or_changed_are_named(material: Path, tmp_path: Path) -> None:
    for path in (material / "images").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "3.png").write_bytes((tmp_path / "4.png").read_bytes())
    stage = EncoderStage(CONFIG, tmp_path, material / "store")
    with pytest.raises(RunError, match=r"3\.png is not the image that the teacher saw"):
        stage.load([stage.store.entries["3.png"]])
    (tmp_path / "3.png").unlink()
    with pytest.raises(RunError, match=r"1 images of the embeddings are not in .*3\.png"):
        EncoderStage(CONFIG, tmp_path, material / "store")


def test_a_checkpoint_of_another_architecture_is_named_by_file(
    build: Callable[..., EncoderStage], tmp_path: Path
) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    for source in ("init", "decoder"):
        with pytest.raises(RunError, match=r"resnet\.pth: "):
            build(**{source: path})


def test_a_recipe_survives_being_saved(tmp_path: Path) -> None:
    save_recipe(CONFIG, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml", EncoderStageConfig) == CONFIG


def test_the_published_recipe_is_read() -> None:
    recipe = Path(encoder_stage.__file__).with_name("recipes") / "encoder_only.yaml"
    config = load_recipe(recipe, EncoderStageConfig)
    # 110,000 photos, ten times, 64 at once.
    assert config.steps * config.batch * 8 == pytest.approx(10 * 110_000, rel=0.05)


@pytest.mark.slow
def test_the_command_teaches_the_encoder_and_hands_over_the_teachers_decoder(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, steps=24, evaluate_every=6, save_every=24, ema_decay=0.5)
    save_recipe(config, tmp_path / "recipe.yaml")
    run = tmp_path / "run"
    monkeypatch.setattr("sys.argv", [
        "encoder_stage", str(tmp_path / "recipe.yaml"), str(material / "images"), str(run),
        "--embeddings", str(material / "store"), "--decoder", str(material / "big.pth"),
    ])  # fmt: skip
    assert encoder_stage.main() == 0
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    errors = [row["held_back"]["embedding_error"] for row in rows if "held_back" in row]
    assert errors[-1] < 0.9 * errors[0]
    weights, teacher = (
        read_checkpoint(run / "student.safetensors"),
        read_checkpoint(material / "big.pth"),
    )
    load_state_dict(EdgeSam(), weights)
    same = {key for key in weights if torch.equal(weights[key], teacher[key])}
    taken_over = {key for key in weights if not key.startswith("image_encoder.")}
    assert taken_over <= same
    assert not any(key.startswith("image_encoder.neck") for key in same)
    assert (run / "samples_000024.png").exists()
