from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgesam_core
from edgesam_core.bundle import Bundle
from edgesam_core.decode import Prompt
from edgesam_core.errors import BundleError, PromptError
from edgesam_core.segmenter import Segmenter
from tests.core.conftest import FloatArray, click, disc_picture


def test_a_click_becomes_a_mask_of_the_size_of_the_image(
    segmenter: Segmenter, picture: np.ndarray
) -> None:
    embedding = segmenter.embed(picture)
    (suggestion,) = segmenter.segment(embedding, [click(60, 45)])
    assert suggestion.mask.full().shape == (90, 120)
    assert suggestion.mask.area > 0
    assert 0 <= suggestion.score <= suggestion.stability_score <= 1
    side = segmenter.manifest.input_size // 4
    assert suggestion.low_res_logits.shape == (side, side)


def test_every_prompt_has_its_own_suggestion_in_order(
    segmenter: Segmenter, picture: np.ndarray
) -> None:
    embedding = segmenter.embed(picture)
    prompts = [
        click(60, 45),
        Prompt.from_clicks(box_xyxy=(10, 10, 50, 60)),
        Prompt.from_clicks([(30, 30, 1), (90, 80, 0)]),
        Prompt.from_clicks(box_xyxy=(60, 10, 110, 60)),
    ]
    together = segmenter.segment(embedding, prompts)
    for prompt, suggestion in zip(prompts, together, strict=True):
        (alone,) = segmenter.segment(embedding, [prompt])
        assert suggestion.candidate_index == alone.candidate_index
        differing = suggestion.mask.full() != alone.mask.full()
        assert np.count_nonzero(differing) <= 5  # logits next to zero


def test_an_embedding_of_another_version_is_refused(
    segmenter: Segmenter, picture: np.ndarray
) -> None:
    embedding = replace(segmenter.embed(picture), bundle_version="another")
    with pytest.raises(BundleError, match="another version of the model"):
        segmenter.segment(embedding, [click(60, 45)])


def test_a_prompt_outside_the_image_gets_a_sentence(
    segmenter: Segmenter, picture: np.ndarray
) -> None:
    with pytest.raises(PromptError, match="outside the image"):
        segmenter.segment(segmenter.embed(picture), [click(121, 45)])


def test_the_mask_lies_where_the_logits_are(painted_bundle: Callable[..., Path]) -> None:
    logits = np.full((4, 16, 16), -5, np.float32)
    logits[:, 2:6, 8:12] = 5  # a quarter of 16 cells: x from 1/2 to 3/4 of the long side
    segmenter = Segmenter(Bundle.open(painted_bundle(logits)))
    # 4000 x 2000: 250 pixels of the image to one cell.
    embedding = segmenter.embed(np.zeros((2000, 4000, 3), np.uint8))
    (suggestion,) = segmenter.segment(embedding, [click(2500, 1000)])
    assert suggestion.mask.box_xyxy == pytest.approx((2000, 500, 3000, 1500), abs=8)
    assert suggestion.score == 1.0


def test_a_candidate_that_vanishes_at_the_original_size_gives_way_to_one_that_does_not(
    painted_bundle: Callable[..., Path],
) -> None:
    speck = np.full((16, 16), -50, np.float32)
    speck[8, 8] = 0.01  # positive at one cell's centre, between the samples nowhere
    square = np.full((16, 16), -5, np.float32)
    square[4:8, 4:8] = 5
    segmenter = Segmenter(Bundle.open(painted_bundle(np.stack([speck, speck, square, speck]))))
    embedding = segmenter.embed(np.zeros((64, 64, 3), np.uint8))
    box = Prompt.from_clicks(box_xyxy=(8, 8, 40, 40))
    (suggestion,) = segmenter.segment(embedding, [box])
    assert suggestion.candidate_index == 2
    assert suggestion.mask.area > 0


def test_where_every_candidate_is_empty_the_caller_sees_it(
    painted_bundle: Callable[..., Path],
) -> None:
    nothing = np.full((4, 16, 16), -5, np.float32)
    segmenter = Segmenter(Bundle.open(painted_bundle(nothing)))
    embedding = segmenter.embed(np.zeros((64, 64, 3), np.uint8))
    (suggestion,) = segmenter.segment(embedding, [click(8, 8)])
    assert (suggestion.mask.area, suggestion.score) == (0, 0.0)
    assert suggestion.mask.box_xyxy is None


def test_a_manifest_that_promises_refinement_needs_a_decoder_that_refines(
    painted_bundle: Callable[..., Path],
) -> None:
    bundle = Bundle.open(painted_bundle(np.zeros((4, 16, 16), np.float32), official=True))
    promising = Bundle(bundle.path, replace(bundle.manifest, refines_with_mask_input=True))
    with pytest.raises(BundleError, match="promises to refine"):
        Segmenter(promising)


def test_two_annotators_on_two_images_never_see_each_others_mask(segmenter: Segmenter) -> None:
    sizes = [(90, 120), (150, 100)]
    pictures = [disc_picture(seed, size) for seed, size in enumerate(sizes)]
    prompts = [click(40, 40), Prompt.from_clicks([(60, 80, 1), (10, 10, 0)])]

    def answer(who: int) -> FloatArray:
        (suggestion,) = segmenter.segment(segmenter.embed(pictures[who]), [prompts[who]])
        assert suggestion.mask.original_size_hw == sizes[who]
        return suggestion.low_res_logits

    expected = [answer(0), answer(1)]
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    with ThreadPoolExecutor(2) as threads:
        for who, logits in enumerate(threads.map(answer, [0, 1] * 6)):
            np.testing.assert_allclose(logits, expected[who % 2], atol=1e-5)


def test_two_annotators_share_no_image_even_when_their_steps_interleave(
    segmenter: Segmenter,
) -> None:
    pictures = [disc_picture(2), disc_picture(3, (60, 200))]
    first, second = (segmenter.embed(picture) for picture in pictures)
    (late,) = segmenter.segment(first, [click(40, 40)])  # after the second image came in
    (alone,) = segmenter.segment(segmenter.embed(pictures[0]), [click(40, 40)])
    np.testing.assert_allclose(late.low_res_logits, alone.low_res_logits, atol=1e-5)
    assert late.mask.original_size_hw == (90, 120)
    assert second.original_size_hw == (60, 200)


def test_everything_public_can_be_imported_and_is_listed_in_order() -> None:
    names = edgesam_core.__all__
    assert names == sorted(names)
    for name in names:
        assert getattr(edgesam_core, name).__doc__
