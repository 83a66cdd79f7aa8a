from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.model import ModelSettings
from backend.refinement import Refinement, RefinementSettings, prompt_hash, without_last_click
from edgesam_core.decode import Prompt
from tests.backend.conftest import MakeClient, body, keypoint, mask_of, rectangle
from tests.backend.disc_bundle import write_disc_bundle

ONE = Prompt.from_clicks([(10, 20, 1)])
TWO = Prompt.from_clicks([(10, 20, 1), (30, 40, 0)])
BOX = Prompt.from_clicks(box_xyxy=(1, 2, 30, 40))
BOX_AND_ONE = Prompt.from_clicks([(10, 20, 1)], box_xyxy=(1, 2, 30, 40))


def test_a_prompt_one_click_ago() -> None:
    assert without_last_click(ONE) is None
    assert without_last_click(BOX) is None
    earlier, before_the_click = without_last_click(TWO), without_last_click(BOX_AND_ONE)
    assert earlier is not None
    assert before_the_click is not None
    assert prompt_hash(earlier) == prompt_hash(ONE)
    assert prompt_hash(before_the_click) == prompt_hash(BOX)


def test_a_hash_tells_prompts_apart() -> None:
    moved = Prompt.from_clicks([(10.02, 20, 1)])
    negative = Prompt.from_clicks([(10, 20, 0)])
    swapped = Prompt.from_clicks([(30, 40, 0), (10, 20, 1)])
    prompts = (ONE, TWO, BOX, BOX_AND_ONE, moved, negative, swapped)
    assert len({prompt_hash(prompt) for prompt in prompts}) == len(prompts)


def test_the_shown_logits_come_back_with_the_next_click_only() -> None:
    refinement = Refinement(RefinementSettings())
    logits = np.linspace(-2000, 20, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert refinement.extend("k", TWO) is TWO
    refinement.remember("k", ONE, logits)
    fed_back = refinement.extend("k", TWO).mask_input
    assert fed_back is not None
    assert fed_back.dtype == np.float32
    assert np.allclose(fed_back, logits.clip(-1000, 1000), rtol=1e-3)
    assert refinement.extend("k", ONE).mask_input is None
    assert refinement.extend("another image", TWO).mask_input is None
    assert refinement.extend("k", Prompt.from_clicks([(11, 20, 1), (30, 40, 0)])).mask_input is None


def area(client: FlaskClient, *regions: Any) -> int:
    (region,) = client.post("/predict", json=body(*regions)).json["results"][0]["result"]
    return int(mask_of(region).sum())


@pytest.mark.parametrize("refines", [True, False])
def test_a_second_click_refines_the_shown_mask_where_the_manifest_says_so(
    make_client: MakeClient, tmp_path: Path, refines: bool
) -> None:
    # The stand-in's discs grow by 2 input pixels where it is given a mask input.
    bundle = write_disc_bundle(tmp_path / "disc", refines=refines)
    first, second = keypoint(30, 30), keypoint(60, 60)
    alone = area(make_client(model=ModelSettings(name=str(bundle))), first, second)
    client = make_client(model=ModelSettings(name=str(bundle)))
    area(client, first)
    assert (area(client, first, second) > alone) is refines


def test_a_click_into_an_answered_box_refines_it(make_client: MakeClient) -> None:
    box, click = rectangle(20, 20, 30, 30), keypoint(30, 30)
    alone = area(make_client(), box, click)
    client = make_client()
    area(client, box)
    assert area(client, box, click) > alone


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="cache_bytes"):
        RefinementSettings(cache_bytes=-1)
