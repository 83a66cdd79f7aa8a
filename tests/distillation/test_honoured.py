from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distillation.honoured import honoured_prompts, honours
from distillation.project_set import load_project_set
from edgesam_core.decode import Prompt
from tests.distillation.snapshots import SABOTAGE, write_snapshot


@pytest.mark.parametrize("kind", ["honest", "exchanged", "shifted", "full"])
def test_masks_that_do_not_belong_to_their_prompts_are_told_from_honest_ones(
    tmp_path: Path, kind: str
) -> None:
    run = write_snapshot(tmp_path / "run", train=12, spoil_train=SABOTAGE.get(kind), boxes=True)
    folder = run / "snapshot"
    honoured, looked_at = honoured_prompts(
        load_project_set(folder / "train.json", folder / "images")
    )
    assert looked_at > 10
    assert honoured == looked_at if kind == "honest" else honoured < 0.6 * looked_at


@pytest.mark.parametrize(
    ("prompt", "fits"),
    [
        pytest.param(Prompt.from_clicks([(30, 30, 1)]), True, id="click inside"),
        pytest.param(Prompt.from_clicks([(18.5, 30, 1)]), True, id="click beside the edge"),
        pytest.param(Prompt.from_clicks([(60, 30, 1)]), False, id="click elsewhere"),
        pytest.param(Prompt.from_clicks([(30, 30, 1), (60, 30, 0)]), True, id="negative outside"),
        pytest.param(Prompt.from_clicks([(25, 30, 1), (30, 30, 0)]), False, id="negative inside"),
        pytest.param(Prompt.from_clicks(box_xyxy=(15, 15, 45, 40)), True, id="loose box"),
        pytest.param(Prompt.from_clicks(box_xyxy=(50, 50, 70, 70)), False, id="box elsewhere"),
        pytest.param(Prompt.from_clicks(box_xyxy=(25, 25, 28, 28)), False, id="box of a part"),
    ],
)
def test_a_mask_fits_its_prompt_or_not(prompt: Prompt, fits: bool) -> None:
    mask = np.zeros((80, 80), np.bool_)
    mask[20:40, 20:40] = True
    assert honours(mask, prompt) == fits
    assert not honours(np.zeros_like(mask), prompt)
