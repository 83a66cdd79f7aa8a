from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from distillation.candidate_rules import BY_PREDICTION, BY_STABILITY
from distillation.measuring import WITH_LOGITS
from distillation.release import Choices, choose, release
from edgesam_core.bundle import Bundle
from edgesam_core.nn.checkpoint import official_state_dict
from tests.core.networks import random_network


def measured(*, stability: float = 39.3, prediction: float = 39.3, box: float = 70.0) -> Any:
    """What `choose` reads of a ``scores.json``; earlier logits are fed back."""
    return {
        "settings": {"method": "m"},
        "refines_with_mask_input": True,
        "miou_percent": {"all": {"m": {"box": 0}, "m" + WITH_LOGITS: {"box": box, "click": 40.0}}},
        "miou_percent_by_candidate_rule": {
            BY_STABILITY: {"click by rule": stability},
            BY_PREDICTION: {"click by rule": prediction},
        },
    }


@pytest.mark.parametrize(("prediction", "trusts"), [(42.6, True), (39.3, False)])
def test_the_predicted_iou_is_trusted_only_where_it_chose_better_masks(
    prediction: float, trusts: bool
) -> None:
    chosen = choose(measured(), measured(prediction=prediction))
    assert chosen == Choices(True, trusts, True)


def test_the_other_choices_are_those_of_what_will_be_served() -> None:
    better_padded = choose(measured(prediction=42.6), measured(box=60.0))
    assert better_padded == Choices(True, True, False)


@pytest.mark.parametrize(
    ("box", "left_out"),
    [
        pytest.param(72.0, True, id="better"),
        pytest.param(69.6, True, id="0.4 points lost"),
        pytest.param(69.4, False, id="0.6 points lost"),
    ],
)
def test_padding_is_left_out_where_no_kind_of_prompt_loses_much(box: float, left_out: bool) -> None:
    assert choose(measured(), measured(box=box)) == Choices(True, False, left_out)


@pytest.mark.slow
def test_a_release_is_measured_on_odd_ids_and_says_so(data_folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "student.safetensors"
    save_file(official_state_dict(random_network()), weights)
    data = tmp_path / "data"
    (data / "research_only").mkdir(parents=True)
    (data / "research_only" / "scenes").symlink_to(data_folder / "open" / "scenes")

    release(weights, data, tmp_path / "default", input_size=64, limit=1)

    manifest = Bundle.open(tmp_path / "default").manifest
    assert manifest.draws_prompts
    assert (manifest.scores["ids"], manifest.scores["objects"] > 0) == ("odd", True)
    card = (tmp_path / "default" / "MODEL_CARD.md").read_text()
    served = "this model" + ", earlier logits as mask input" * manifest.refines_with_mask_input
    row = next(line for line in card.splitlines() if f"| {served} |" in line)
    for score in manifest.scores["miou_percent"].values():
        assert f" {score:.1f} |" in row
    assert "{" not in card.split("## Where it fails")[0]
    assert json.loads((tmp_path / "default" / "manifest.json").read_text())["scores"]
