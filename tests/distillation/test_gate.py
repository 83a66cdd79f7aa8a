"""Who may serve: what is asked, and the verdict on bundles that really answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distillation import gate as gate_module
from distillation import gate_rows
from distillation.gate import gate
from distillation.gate_rows import MOST_CLICKS, held_out_rows, replay_rows
from distillation.project_set import load_project_set
from distillation.project_stage import train
from distillation.replay import GATE_SCENES, replay_scene
from edgesam_core.errors import BundleError, RunError
from tests.backend.disc_bundle import write_disc_bundle
from tests.distillation.discs import MASKS, SIZE_HW, Oracle, coco_of, disc, write_set
from tests.distillation.snapshots import SABOTAGE, write_snapshot
from tests.small_model import write_small_model

# --- asking, with one who knows all answers ---


@pytest.fixture
def held_out(tmp_path: Path):
    coco = coco_of(MASKS)
    for annotation in coco["annotations"]:
        x, y, w, h = annotation["bbox"]
        prompt = {"points": [[x + w / 2, y + h / 2]], "labels": [1], "box": None}
        annotation["edgesam"] = {"prompt": prompt}
    coco["annotations"][0]["edgesam"]["prompt"]["points"] = [[999.0, 5.0]]
    folder = write_set(tmp_path / "set", coco=coco)
    return load_project_set(folder / "annotations.json", folder / "images")


def oracle(spoil: Callable[[np.ndarray], np.ndarray] = lambda mask: mask) -> Any:
    answerer: Any = Oracle(spoil=spoil)
    answerer.manifest = SimpleNamespace(refines_with_mask_input=False, input_size=64)
    return answerer


def test_every_object_is_asked_by_box_by_clicks_and_as_its_annotator_did(
    held_out, tmp_path: Path
) -> None:
    found = held_out_rows(oracle(), held_out, tmp_path / "rows.jsonl")
    assert [row.key for row in found] == ["1", "2", "3"]
    assert [row.group for row in found] == [1, 1, 2]
    assert set(found[1].ious) == {"box", "click", "click_1", "click_2", "stored"}
    assert set(found[0].ious) == {"box", "click", "click_1", "click_2"}  # a click off the image
    assert all(row.score == 1 and row.clicks == 1 for row in found)


def test_clicks_are_counted_until_it_is_good_enough(held_out, tmp_path: Path) -> None:
    half = np.zeros(SIZE_HW, np.bool_)
    half[:, ::2] = True
    answerer = oracle(lambda mask: mask & half)
    found = held_out_rows(answerer, held_out, tmp_path / "rows.jsonl")
    assert all(row.clicks == MOST_CLICKS for row in found)


def test_what_was_asked_already_is_not_asked_again(held_out, tmp_path: Path) -> None:
    memory = tmp_path / "rows.jsonl"
    before = held_out_rows(oracle(), held_out, memory)
    lines = memory.read_text().splitlines()
    memory.write_text(lines[0] + "\n" + lines[1][:20])  # killed while it wrote the second image
    again = oracle()
    assert held_out_rows(again, held_out, memory) == before
    asked_about = {tuple(p.box_xyxy) for p in again.prompts if p.box_xyxy is not None}
    assert len(asked_about) == 1


# --- bundles ---


@pytest.fixture(scope="module")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("models") / "base")


def recipe(path: Path, *, steps: int, learning_rate: float = 1e-3) -> Path:
    path.write_text(f"""
phases: [{{steps: {steps}, size: 128, batch: 3, prompts: 4, rounds: 2, box_share: 0.5,
  procedural: 0.25, pasted: 0.0, min_area: 0.0}}]
set_weights: {{project: 1}}
views: 3
replay_scenes: 24
learning_rate: {learning_rate}
warmup_steps_from_weights: 5
ema_decay: 0.95
held_back: 2
seed: 1
""")
    return path


@pytest.mark.slow
def test_the_incumbent_itself_is_no_challenger_and_a_second_call_asks_nothing(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_snapshot(tmp_path / "run")
    (run / "challenger").symlink_to(small_base)
    said = gate(small_base, run, threads=1)
    assert said == json.loads((run / "gate.json").read_text())
    assert not said["promote"]
    assert said["held_out"]["difference"] == said["replay"]["difference"] == 0
    assert said["replay"]["objects"] > 3 * GATE_SCENES
    assert set(said["labels"]) == {"kind 1", "kind 2"}
    monkeypatch.setattr(gate_module, "Segmenter", None)
    assert gate(small_base, run, threads=1) == said


@pytest.mark.slow
def test_moved_masks_are_seen_where_no_prompt_is_known(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "honoured_prompts", lambda project: (0, 0))
    shifted = SABOTAGE["shifted"]
    run = write_snapshot(tmp_path, train=12, spoil_train=shifted, spoil_held_out=shifted)
    (run / "challenger").symlink_to(small_base)
    assert "end where the image shows an edge" in gate(small_base, run, threads=1)["reason"]


def four_plates_and_two_coins(rng: np.random.Generator) -> list[np.ndarray]:
    places = [(20 + 40 * column, 24 + 42 * row) for row in range(2) for column in range(3)]
    return [
        disc(x + rng.integers(-3, 4), y + rng.integers(-3, 4), radius)
        for (x, y), radius in zip(places, (14, 14, 7) * 2, strict=True)
    ]


@pytest.mark.slow
def test_a_version_that_has_learnt_one_label_at_the_cost_of_another_is_kept_back(
    tmp_path: Path,
) -> None:
    """Both answer a click with a disc, the incumbent one like a coin, the challenger a plate."""
    run = write_snapshot(
        tmp_path / "run", train=4, held_out=10, draw=four_plates_and_two_coins, categories=(1, 1, 2)
    )
    coins = write_disc_bundle(tmp_path / "coins", input_size=128, radius_px=13.0)
    write_disc_bundle(run / "challenger", input_size=128, radius_px=18.0)
    said = gate(coins, run, threads=1)
    plates, coins_found = said["labels"]["kind 1"], said["labels"]["kind 2"]
    assert plates["challenger"] > plates["incumbent"] + 0.1
    assert coins_found["challenger"] < coins_found["incumbent"] - 0.1
    assert said["held_out"]["interval"][0] > 0, "better on the whole, with confidence"
    assert not said["promote"]
    assert said["reason"] == (
        "The new version is better on the whole, but worse for the label 'kind 2': mean IoU "
        f"{100 * coins_found['challenger']:.1f} % instead of "
        f"{100 * coins_found['incumbent']:.1f} % on 20 objects."
    )


@pytest.mark.slow
def test_a_tampered_challenger_is_refused(small_base: Path, tmp_path: Path) -> None:
    run = write_snapshot(tmp_path / "run")
    shutil.copytree(small_base, run / "challenger")
    (run / "challenger" / "decoder.onnx").write_bytes(b"x")
    with pytest.raises(BundleError):
        gate(small_base, run)
    assert not (run / "gate.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("everywhere", [False, True], ids=["training tasks", "every task"])
@pytest.mark.parametrize("kind", list(SABOTAGE))
def test_sabotage_is_never_promoted(
    small_base: Path, tmp_path: Path, kind: str, everywhere: bool
) -> None:
    spoil = SABOTAGE[kind]
    run = write_snapshot(
        tmp_path / "run",
        train=12,
        held_out=6,
        spoil_train=spoil,
        spoil_held_out=spoil if everywhere else None,
    )
    plan = recipe(tmp_path / "recipe.yaml", steps=40)
    if kind == "empty":
        with pytest.raises(RunError, match="no annotated region"):
            train(plan, run, small_base)
        return
    train(plan, run, small_base)
    said = gate(small_base, run, threads=1)
    assert not said["promote"], said["reason"]


@pytest.mark.slow
def test_a_run_that_diverges_is_not_promoted(small_base: Path, tmp_path: Path) -> None:
    run = write_snapshot(tmp_path / "run", train=12, held_out=6)
    try:
        train(recipe(tmp_path / "recipe.yaml", steps=15, learning_rate=10.0), run, small_base)
    except RunError:
        assert not (run / "challenger").exists()
        return
    assert not gate(small_base, run, threads=1)["promote"]


def test_the_replay_set_is_the_same_for_ever() -> None:
    scene = replay_scene(3, 64)
    again = replay_scene(3, 64)
    assert np.array_equal(scene.image, again.image)
    assert np.array_equal(scene.masks, again.masks)


def test_half_of_the_replay_set_is_painted_with_the_projects_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[int, int] = {}

    def scene(number: int, size: int, photos: list[np.ndarray]) -> SimpleNamespace:
        given[number] = len(photos)
        return SimpleNamespace(image=np.zeros((size, size, 3), np.uint8), masks=np.zeros((0, 1, 1)))

    monkeypatch.setattr(gate_rows, "replay_scene", scene)
    answerer: Any = SimpleNamespace(
        manifest=SimpleNamespace(input_size=64), embed=lambda image: None, segment=None
    )
    photo = np.zeros((64, 64, 3), np.uint8)
    assert replay_rows(answerer, [photo], tmp_path / "rows.jsonl") == []
    assert list(given) == list(range(GATE_SCENES))
    assert sum(given.values()) == GATE_SCENES // 2
