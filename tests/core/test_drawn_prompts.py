from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgesam_core.bundle import Bundle
from edgesam_core.decode import Prompt
from edgesam_core.export.write_bundle import write_bundle
from edgesam_core.nn.checkpoint import official_state_dict
from edgesam_core.nn.drawn_prompts import BOX_LOGIT, CLICK_LOGIT, EARLIER_LOGIT, draw_prompts
from edgesam_core.segmenter import Segmenter
from tests.core.networks import random_network

SIZE = 128


def drawn(*tokens: tuple[float, float, float], earlier: torch.Tensor | None = None) -> torch.Tensor:
    """The map [S/4, S/4] of one prompt, given as (x, y, label)."""
    table = torch.tensor([tokens])
    return draw_prompts(table[..., :2], table[..., 2], earlier, None, SIZE)[0, 0]


def test_a_box_is_the_ellipse_in_it() -> None:
    logits = drawn((32, 48, 2), (96, 80, 3)).numpy()
    y, x = (np.mgrid[0:32, 0:32] + 0.5) * 4 - 0.5
    radius = ((x - 64) / 32) ** 2 + ((y - 64) / 16) ** 2
    assert (logits > 0).sum() == (radius < 1).sum() > 50
    np.testing.assert_allclose(logits, BOX_LOGIT * np.clip(1 - radius, -1, 1), atol=1e-4)


def test_clicks_are_bumps_with_their_sign_where_they_are() -> None:
    logits = drawn((41.5, 21.5, 1), (101.5, 81.5, 0), (0, 0, -1))
    assert divmod(int(logits.argmax()), 32) == (5, 10)
    assert divmod(int(logits.argmin()), 32) == (20, 25)
    assert logits.max() == pytest.approx(CLICK_LOGIT, abs=1e-3)
    assert logits[31, 0] == pytest.approx(0, abs=1e-6)  # nothing was said of this corner


def test_padding_and_ignored_points_draw_nothing() -> None:
    assert not drawn((50, 50, -1), (60, 60, -2)).any()


def test_box_and_clicks_come_on_top_of_an_earlier_mask() -> None:
    earlier = torch.full((1, 1, 32, 32), -30.0)
    prompts = (41.5, 21.5, 1), (32, 48, 2), (96, 80, 3)
    difference = drawn(*prompts, earlier=earlier) - drawn(*prompts)
    torch.testing.assert_close(difference, torch.full_like(difference, -EARLIER_LOGIT))


def test_an_exported_model_draws_by_itself_and_is_told_apart_in_its_manifest(
    tmp_path: Path,
) -> None:
    model = random_network()
    plain = write_bundle(model, tmp_path / "plain", name="plain", input_size=SIZE)
    model.draws_prompts = True
    weights = official_state_dict(model)
    drawing = write_bundle(weights, tmp_path / "d", name="d", input_size=SIZE, draws_prompts=True)

    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    prompt = Prompt.from_clicks([(40, 30, 1)], box_xyxy=(10, 10, 60, 50))
    masks = []
    for folder, draws in ((plain, False), (drawing, True)):
        bundle = Bundle.open(folder)
        assert bundle.manifest.draws_prompts is draws
        segmenter = Segmenter(bundle, threads=1)
        (suggestion,) = segmenter.segment(segmenter.embed(picture), [prompt])
        masks.append(suggestion.low_res_logits)
    assert np.abs(masks[0] - masks[1]).max() > 0.01
