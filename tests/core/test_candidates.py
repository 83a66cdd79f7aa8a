from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesam_core.candidates import (
    Ranking,
    logits_at,
    rank_candidates,
    share_of_clicks_honoured,
    stability_score,
    valid_area,
)
from edgesam_core.decode import DecoderOutput, Prompt
from tests.core.conftest import FloatArray, click, embedding_of

SQUARE = (64, 64)  # fills the input: one image pixel is one pixel of the input


def blob(
    rows: slice, columns: slice, *, inside: float = 5.0, outside: float = -5.0, side: int = 16
) -> FloatArray:
    logits = np.full((side, side), outside, np.float32)
    logits[rows, columns] = inside
    return logits


LEFT = blob(slice(4, 12), slice(0, 8))
RIGHT = blob(slice(4, 12), slice(8, 16))
HAZE_LEFT = blob(slice(4, 12), slice(0, 8), inside=0.5)
EMPTY = np.full((16, 16), -5, np.float32)
ON_THE_LEFT = (16, 32)  # in original pixels: cell (4, 8)


def output(*masks: FloatArray) -> DecoderOutput:
    return DecoderOutput(np.stack(masks), np.linspace(0.9, 0.6, len(masks), dtype=np.float32))


def order(prompt: Prompt, *masks: FloatArray) -> list[int]:
    return [c.index for c in rank_candidates(output(*masks), prompt, embedding_of(SQUARE))]


def test_one_positive_click_gets_the_best_of_all_four() -> None:
    assert order(click(*ON_THE_LEFT), HAZE_LEFT, EMPTY, RIGHT, LEFT)[0] == 3


def test_mask_0_may_answer_one_positive_click() -> None:
    assert order(click(*ON_THE_LEFT), LEFT, HAZE_LEFT, RIGHT, EMPTY)[0] == 0


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(Prompt.from_clicks([(16, 32, 1), (60, 60, 0)]), id="a second click"),
        pytest.param(Prompt.from_clicks([(16, 32, 1), (20, 30, 1)]), id="two positive clicks"),
        pytest.param(Prompt.from_clicks(box_xyxy=(0, 16, 32, 48)), id="a box"),
        pytest.param(Prompt.from_clicks([(16, 32, 1)], box_xyxy=(0, 16, 32, 48)), id="both"),
        pytest.param(Prompt.from_clicks([(16, 32, 1)], mask_input=LEFT), id="an earlier mask"),
        pytest.param(Prompt.from_clicks([(60, 60, 0)]), id="one negative click"),
    ],
)
def test_everything_else_gets_mask_0_however_good_the_others_are(prompt: Prompt) -> None:
    assert order(prompt, HAZE_LEFT, LEFT, LEFT, LEFT)[0] == 0


def test_an_empty_mask_0_gives_way_to_the_best_that_is_not_empty() -> None:
    box = Prompt.from_clicks(box_xyxy=(0, 16, 32, 48))
    assert order(box, EMPTY, EMPTY, HAZE_LEFT, LEFT) == [3, 2, 0, 1]


def test_a_mask_that_misses_the_click_loses_to_a_haze_that_does_not() -> None:
    logits = blob(slice(4, 12), slice(0, 8), inside=0.5)
    logits[8, 4] = 2.0  # a stability score just above zero
    assert order(click(*ON_THE_LEFT), RIGHT, logits, RIGHT, RIGHT)[0] == 1


def test_where_every_candidate_misses_the_click_the_most_stable_one_is_shown_with_score_zero() -> (
    None
):
    hazy = blob(slice(4, 12), slice(8, 16), inside=0.5)
    ranked = rank_candidates(output(hazy, EMPTY, RIGHT, hazy), click(16, 32), embedding_of(SQUARE))
    assert (ranked[0].index, ranked[0].score, ranked[0].stability_score) == (2, 0.0, 1.0)


def test_the_score_is_stability_times_the_share_of_clicks_honoured() -> None:
    edge = LEFT.copy()
    edge[4:12, 8:10] = 0.5  # inside at the looser cut, outside at the stricter: 64 of 80 cells
    prompt = Prompt.from_clicks([(16, 32, 1), (48, 32, 1), (60, 4, 0), (8, 40, 0)])
    first = rank_candidates(output(edge, LEFT, LEFT, LEFT), prompt, embedding_of(SQUARE))[0]
    assert first.stability_score == pytest.approx(0.8)
    assert first.score == pytest.approx(0.8 * 2 / 4)
    assert first.iou_prediction == pytest.approx(0.9)


def test_what_the_decoder_imagines_on_the_padding_counts_for_nothing() -> None:
    # 64 x 32 pixels: the lower half of the input is padding.
    on_padding = blob(slice(8, 16), slice(0, 16))
    half = blob(slice(0, 4), slice(0, 8))
    half[8:] = 0.5
    landscape = embedding_of((32, 64))
    assert valid_area(half, landscape).shape == (8, 16)
    box = Prompt.from_clicks(box_xyxy=(0, 0, 32, 16))
    ranked = rank_candidates(output(on_padding, half, on_padding, on_padding), box, landscape)
    assert [ranked[0].index, ranked[0].stability_score] == [1, 1.0]


def test_a_cell_that_is_partly_padding_stays() -> None:
    assert valid_area(EMPTY, embedding_of((33, 64))).shape == (9, 16)


def test_stability_is_one_for_a_sharp_mask_and_zero_for_haze_and_nothing() -> None:
    assert stability_score(np.stack([LEFT, HAZE_LEFT, EMPTY])).tolist() == [1, 0, 0]


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 5))
def test_stability_lies_between_zero_and_one(seed: int, offset: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (2, 3, 8, 8)).astype(np.float32)
    scores = stability_score(logits, offset=offset)
    assert scores.shape == (2, 3)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_stability_equals_the_reference_on_the_whole_square(shared: Path) -> None:
    expected = np.load(shared / "parity" / "decoder.npz")
    logits = expected["landscape.point.low_res.full"].reshape(4, 256, 256)
    np.testing.assert_allclose(
        stability_score(logits), expected["landscape.point.stability"], atol=1e-6
    )


def test_clicks_count_between_the_cells_as_up_scaling_does() -> None:
    logits = np.array([[-1, 3], [-1, 3]], np.float32)
    # In cells: the centres of the two columns are at 0.5 and 1.5, zero lies at 0.75.
    points = np.array([[0.5, 1], [0.74, 1], [0.76, 1], [1.5, 1], [2, 2], [0, 0]])
    values = logits_at(logits, points)
    np.testing.assert_allclose(values, [-1, -0.04, 0.04, 3, 3, -1], atol=1e-6)


def test_a_prompt_without_clicks_is_honoured() -> None:
    box = Prompt.from_clicks(box_xyxy=(0, 0, 9, 9))
    assert share_of_clicks_honoured(EMPTY[None], box, embedding_of(SQUARE)).tolist() == [1]


SAM = Ranking(trusts_iou_prediction=True, offers_mask_0_for_a_click=False)


def sam_order(prompt: Prompt, ious: list[float], *masks: FloatArray) -> list[int]:
    answer = DecoderOutput(np.stack(masks), np.array(ious, np.float32))
    return [c.index for c in rank_candidates(answer, prompt, embedding_of(SQUARE), SAM)]


def test_sam_gives_a_click_the_best_of_masks_1_to_3_by_its_own_estimate() -> None:
    masks = (LEFT, LEFT, HAZE_LEFT, LEFT)
    assert sam_order(click(*ON_THE_LEFT), [0.99, 0.5, 0.9, 0.7], *masks) == [2, 3, 1, 0]


def test_sam_gives_everything_else_mask_0() -> None:
    two = Prompt.from_clicks([(16, 32, 1), (60, 60, 0)])
    assert sam_order(two, [0.1, 0.9, 0.8, 0.7], HAZE_LEFT, LEFT, LEFT, LEFT)[0] == 0


def test_a_mask_that_misses_the_click_scores_nothing_however_sure_sam_is() -> None:
    masks = (EMPTY, RIGHT, LEFT, RIGHT)
    assert sam_order(click(*ON_THE_LEFT), [0.9, 0.95, 0.4, 0.9], *masks)[0] == 2


def test_an_estimate_above_one_is_a_score_of_one() -> None:
    answer = DecoderOutput(np.stack([LEFT] * 4), np.array([0, 1.2, -0.1, 0.5], np.float32))
    ranked = rank_candidates(answer, click(*ON_THE_LEFT), embedding_of(SQUARE), SAM)
    assert [c.score for c in ranked] == [1.0, 0.5, 0.0, 0.0]
