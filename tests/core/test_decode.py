from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_core.bundle import Bundle
from edgesam_core.decode import Decoder, Prompt, prompt_to_tokens
from edgesam_core.encode import Embedding
from edgesam_core.errors import BundleError, EdgeSamError, PromptError
from edgesam_core.export.decoder import INPUTS
from edgesam_core.segmenter import Segmenter
from edgesam_core.session import open_session
from tests.core.conftest import FloatArray, click, disc_picture, embedding_of

HALF_SIZE = embedding_of((128, 96))  # 96 x 128 pixels, halved into 48 x 64


def test_a_point_without_a_box_is_followed_by_one_padding_token() -> None:
    coords, labels = prompt_to_tokens(Prompt.from_clicks([(10, 20, 1), (30, 40, 0)]), HALF_SIZE)
    assert labels.tolist() == [1, 0, -1]
    assert coords.tolist() == [[5, 10], [15, 20], [0, 0]]
    assert coords.dtype == labels.dtype == np.float32


def test_a_box_is_two_corners_without_padding() -> None:
    coords, labels = prompt_to_tokens(Prompt.from_clicks(box_xyxy=(10, 20, 30, 40)), HALF_SIZE)
    assert labels.tolist() == [2, 3]
    assert coords.tolist() == [[5, 10], [15, 20]]


def test_points_stand_before_the_corners_of_the_box() -> None:
    prompt = Prompt.from_clicks([(12, 22, 0)], box_xyxy=(10, 20, 30, 40))
    coords, labels = prompt_to_tokens(prompt, HALF_SIZE)
    assert labels.tolist() == [0, 2, 3]
    assert coords.tolist() == [[6, 11], [5, 10], [15, 20]]


def test_a_box_over_the_border_is_cut_there() -> None:
    coords, _ = prompt_to_tokens(Prompt.from_clicks(box_xyxy=(-50, 20, 500, 400)), HALF_SIZE)
    assert coords.tolist() == [[0, 10], [48, 64]]


@pytest.mark.parametrize("point", [(96.5, 5), (-1, 5), (5, 129), (float("nan"), 5)])
def test_a_click_outside_the_image_gets_a_sentence(point: tuple[float, float]) -> None:
    with pytest.raises(PromptError, match="outside the image"):
        prompt_to_tokens(click(*point), HALF_SIZE)


def test_a_prompt_of_nothing_gets_a_sentence() -> None:
    with pytest.raises(PromptError, match="neither a click nor a rectangle"):
        Prompt()


@pytest.mark.parametrize("label", [-1, 2, 3, 0.5])
def test_only_positive_and_negative_are_clicks(label: float) -> None:
    with pytest.raises(ValueError, match="expected 0 and 1"):
        Prompt(np.zeros((1, 2), np.float32), np.array([label], np.float32))


CLICKS = st.tuples(st.floats(0, 120), st.floats(0, 90), st.sampled_from([0, 1]))
BOXES = st.tuples(st.floats(0, 50), st.floats(0, 40), st.floats(60, 120), st.floats(50, 90))
PROMPTS = st.builds(
    lambda clicks, box: Prompt.from_clicks(clicks if clicks or box else [(1, 1, 1)], box_xyxy=box),
    st.lists(CLICKS, max_size=3),
    st.none() | BOXES,
)


@pytest.fixture(scope="module")
def embedding(segmenter: Segmenter) -> Embedding:
    return segmenter.embed(disc_picture(0))


@settings(max_examples=10, deadline=None)  # each runs the network a dozen times
@given(st.lists(PROMPTS, min_size=2, max_size=6))
def test_a_prompt_alone_equals_the_same_prompt_among_others(
    segmenter: Segmenter, embedding: Embedding, batch: list[Prompt]
) -> None:
    together = segmenter.decode(embedding, batch)
    for prompt, output in zip(batch, together, strict=True):
        (alone,) = segmenter.decode(embedding, [prompt])
        # fp32 sums in another order; logits of this network are of the order of 0.3.
        np.testing.assert_allclose(output.low_res_logits, alone.low_res_logits, atol=1e-5)
        np.testing.assert_allclose(output.iou_prediction, alone.iou_prediction, atol=1e-5)


def test_no_prompts_get_no_answers(segmenter: Segmenter, embedding: Embedding) -> None:
    assert segmenter.decode(embedding, []) == []


def test_every_output_has_four_candidates_of_a_quarter_of_the_input(
    segmenter: Segmenter, embedding: Embedding
) -> None:
    (output,) = segmenter.decode(embedding, [click(60, 45)])
    side = segmenter.manifest.input_size // 4
    assert output.low_res_logits.shape == (4, side, side)
    assert output.iou_prediction.shape == (4,)


def test_a_mask_input_changes_its_own_prompt_only(
    segmenter: Segmenter, embedding: Embedding
) -> None:
    (plain,) = segmenter.decode(embedding, [click(60, 45)])
    earlier = 20 * plain.low_res_logits[1]
    refined = Prompt.from_clicks([(60, 45, 1)], mask_input=earlier)
    first, second = segmenter.decode(embedding, [refined, click(60, 45)])
    assert np.abs(first.low_res_logits - plain.low_res_logits).max() > 1e-2
    np.testing.assert_allclose(second.low_res_logits, plain.low_res_logits, atol=1e-5)


@pytest.mark.parametrize(
    "mask_input",
    [
        pytest.param(np.zeros((8, 8), np.float32), id="another size"),
        pytest.param(np.full((64, 64), np.nan, np.float32), id="no numbers"),
    ],
)
def test_a_mask_input_that_does_not_fit_gets_a_sentence(
    segmenter: Segmenter, embedding: Embedding, mask_input: FloatArray
) -> None:
    with pytest.raises(PromptError, match="expected 64 x 64 finite logits"):
        segmenter.decode(embedding, [Prompt.from_clicks([(1, 1, 1)], mask_input=mask_input)])


def test_the_official_pair_is_served_prompt_by_prompt(
    painted_bundle: Callable[..., Path], picture: np.ndarray
) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (4, 16, 16)).astype(np.float32)
    official = Segmenter(Bundle.open(painted_bundle(logits, official=True)))
    prompts = [click(9, 9), Prompt.from_clicks(box_xyxy=(1, 2, 30, 40)), click(50, 50)]
    outputs = official.decode(official.embed(picture), prompts)
    assert len(outputs) == 3
    for output in outputs:
        np.testing.assert_array_equal(output.low_res_logits, logits)
        np.testing.assert_allclose(output.iou_prediction, [0.5, 0.6, 0.7, 0.8], atol=1e-6)


def test_the_official_pair_says_that_it_cannot_refine(
    painted_bundle: Callable[..., Path], picture: np.ndarray
) -> None:
    logits = np.zeros((4, 16, 16), np.float32)
    official = Segmenter(Bundle.open(painted_bundle(logits, official=True)))
    prompt = Prompt.from_clicks([(9, 9, 1)], mask_input=logits[0])
    with pytest.raises(PromptError, match="cannot refine"):
        official.decode(official.embed(picture), [prompt])


def test_a_graph_of_another_kind_is_no_decoder(painted_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(painted_bundle(np.zeros((4, 16, 16), np.float32)))
    with pytest.raises(BundleError, match="The decoder takes image"):
        Decoder(open_session(bundle.encoder_path))


class Answering:
    """A graph with our inputs that answers the same whatever it is asked."""

    inputs: ClassVar = dict.fromkeys(INPUTS, ())

    def __init__(self, low_res_logits: FloatArray, iou_predictions: FloatArray) -> None:
        self.answer = [low_res_logits, iou_predictions]

    def run(self, names: Sequence[str], inputs: Mapping[str, FloatArray]) -> list[FloatArray]:
        return self.answer


@pytest.mark.parametrize(
    ("logits_shape", "scores_shape"),
    [
        pytest.param((1, 4, 8, 8), (1, 4), id="logits of another size"),
        pytest.param((4, 16, 16), (1, 4), id="logits without prompts"),
        pytest.param((1, 4, 16, 16), (4,), id="scores without prompts"),
        pytest.param((1, 3, 16, 16), (1, 4), id="more scores than masks"),
        pytest.param((2, 4, 16, 16), (2, 4), id="more answers than prompts"),
        pytest.param((1, 0, 16, 16), (1, 0), id="no mask"),
    ],
)
def test_an_answer_of_another_shape_is_the_bundles_fault(
    logits_shape: tuple[int, ...], scores_shape: tuple[int, ...]
) -> None:
    graph = Answering(np.zeros(logits_shape, np.float32), np.zeros(scores_shape, np.float32))
    with pytest.raises(BundleError, match="decoder answered 1 prompts with logits of shape"):
        Decoder(graph).decode(HALF_SIZE, [click(9, 9)])


def test_an_estimate_that_is_no_number_gets_a_sentence() -> None:
    graph = Answering(np.zeros((1, 4, 16, 16), np.float32), np.full((1, 4), np.nan, np.float32))
    with pytest.raises(EdgeSamError, match="no numbers"):
        Decoder(graph).decode(HALF_SIZE, [click(9, 9)])


def test_logits_that_are_no_numbers_get_a_sentence(
    painted_bundle: Callable[..., Path], picture: np.ndarray
) -> None:
    broken = Segmenter(Bundle.open(painted_bundle(np.full((4, 16, 16), np.nan, np.float32))))
    with pytest.raises(EdgeSamError, match="no numbers"):
        broken.decode(broken.embed(picture), [click(9, 9)])
