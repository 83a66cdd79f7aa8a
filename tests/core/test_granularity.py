"""Anchors, proposals and both merge rules; against the reference in test_granularity_graph.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.errors import PromptError
from edgesam_core.granularity import (
    MAX_PER_LEVEL,
    MERGE_RULES,
    MIN_SCORE,
    NEAREST,
    MergeRule,
    Proposals,
    anchors,
    cells_per_side,
    decode_boxes,
    merge,
    nearest,
    propose,
)
from edgesam_core.segmenter import with_proposed_box
from tests.core.conftest import click, embedding_of

SIZE = 256


def proposals_of(*rows: tuple[float, float, float, float, float]) -> Proposals:
    """Boxes x0, y0, x1, y1 with their scores."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Proposals(table[:, :4], table[:, 4])


@st.composite
def random_proposals(draw: st.DrawFn) -> Proposals:
    """Up to thirty boxes inside the input, some of equal score."""
    side = st.integers(0, SIZE - 2)
    rows = []
    for _ in range(draw(st.integers(0, 30))):
        x0, y0 = draw(side), draw(side)
        x1, y1 = draw(st.integers(x0 + 1, SIZE)), draw(st.integers(y0 + 1, SIZE))
        rows.append((x0, y0, x1, y1, draw(st.sampled_from([0.15, 0.4, 0.4, 0.75, 0.99]))))
    return proposals_of(*rows)


coordinate = st.floats(0, SIZE, width=32)


@pytest.mark.parametrize(
    ("size", "count"), [(1024, 196416), (512, 49104), (256, 12276), (192, 6921), (64, 774)]
)
def test_every_input_size_has_its_anchors(size: int, count: int) -> None:
    table = anchors(size)
    assert table.shape == (count, 4)
    assert count == 9 * sum(cells**2 for cells in cells_per_side(size))
    np.testing.assert_array_equal(table[0], [-12, -12, 20, 20])


def test_anchors_of_a_cell_keep_their_area_whatever_their_ratio() -> None:
    sides = anchors(SIZE)[:9, 2:] - anchors(SIZE)[:9, :2]
    areas = sides.prod(axis=1).reshape(3, 3)  # ratios x scales
    np.testing.assert_allclose(areas, np.tile(areas[0], (3, 1)), rtol=1e-5)
    np.testing.assert_allclose(sides[:, 1] / sides[:, 0], np.repeat([1, 0.5, 2], 3), rtol=1e-5)


def test_deltas_of_nothing_are_the_anchors_cut_at_the_border() -> None:
    table = anchors(SIZE)
    boxes = decode_boxes(table, np.zeros_like(table), SIZE)
    np.testing.assert_allclose(boxes, table.clip(0, SIZE), atol=1e-3)


def test_only_likely_boxes_inside_the_input_are_proposed_the_likeliest_of_a_level_first() -> None:
    table = anchors(SIZE)
    random = np.random.default_rng(0)
    logits = random.normal(-1, 2, len(table)).astype(np.float32)
    deltas = random.normal(0, 2, table.shape).astype(np.float32)
    proposals = propose(logits, deltas, SIZE)
    assert proposals.scores.min() > MIN_SCORE
    assert (proposals.boxes_xyxy >= 0).all()
    assert (proposals.boxes_xyxy <= SIZE).all()
    assert (proposals.boxes_xyxy[:, :2] < proposals.boxes_xyxy[:, 2:]).all()
    finest = proposals.scores[: MAX_PER_LEVEL // 2]
    assert (np.diff(finest) <= 0).all()
    assert proposals.nbytes == 20 * len(proposals.scores)


def test_a_level_has_at_most_so_many_proposals_and_does_not_crowd_out_another() -> None:
    logits = np.full(len(anchors(SIZE)), 3, np.float32)
    logits[-1] = -1.5  # of the coarsest level, which is far less likely, but likely enough
    proposals = propose(logits, np.zeros((len(logits), 4), np.float32), SIZE)
    counts = [min(MAX_PER_LEVEL, 9 * cells**2) for cells in cells_per_side(SIZE)]
    assert len(proposals.scores) == sum(counts)
    assert proposals.scores[-1] == pytest.approx(0.182, abs=1e-3)


def test_no_likely_anchor_no_proposal() -> None:
    proposals = propose(np.full(774, -9, np.float32), np.zeros((774, 4), np.float32), 64)
    assert proposals.boxes_xyxy.shape == (0, 4)
    assert merge(proposals, 30, 30, "best") is None


@given(random_proposals(), coordinate, coordinate)
def test_only_the_nearest_boxes_around_the_click_are_looked_at(
    proposals: Proposals, x: float, y: float
) -> None:
    five = nearest(proposals, x, y)
    corners = proposals.boxes_xyxy.astype(np.float64)
    around = [b for b in corners if b[0] < x < b[2] and b[1] < y < b[3]]
    distances = sorted(np.hypot((b[0] + b[2]) / 2 - x, (b[1] + b[3]) / 2 - y) for b in around)
    found = five.boxes_xyxy.astype(np.float64)
    actual = [np.hypot((b[0] + b[2]) / 2 - x, (b[1] + b[3]) / 2 - y) for b in found]
    np.testing.assert_allclose(actual, distances[:NEAREST], atol=1e-3)


@given(random_proposals(), coordinate, coordinate, st.sampled_from(MERGE_RULES))
def test_a_merged_box_is_around_the_click_and_between_those_it_was_made_of(
    proposals: Proposals, x: float, y: float, rule: MergeRule
) -> None:
    five, box = nearest(proposals, x, y), merge(proposals, x, y, rule)
    if box is None:
        assert len(five.scores) == 0
        return
    assert box.dtype == np.float32
    slack = 1e-4
    assert box[0] <= x + slack
    assert box[1] <= y + slack
    assert box[2] >= x - slack
    assert box[3] >= y - slack
    assert (box >= five.boxes_xyxy.min(axis=0) - slack).all()
    assert (box <= five.boxes_xyxy.max(axis=0) + slack).all()


@given(random_proposals(), coordinate, coordinate)
def test_best_is_one_of_the_five_and_none_of_them_is_likelier(
    proposals: Proposals, x: float, y: float
) -> None:
    five, box = nearest(proposals, x, y), merge(proposals, x, y, "best")
    if box is not None:
        rows = np.flatnonzero((five.boxes_xyxy == box).all(axis=1))
        assert five.scores[rows].max() == five.scores.max()


@given(random_proposals(), coordinate, coordinate)
def test_the_mean_does_not_depend_on_the_order_of_proposals(
    proposals: Proposals, x: float, y: float
) -> None:
    offsets = (proposals.boxes_xyxy[:, :2] + proposals.boxes_xyxy[:, 2:]) / 2 - (x, y)
    distances = np.square(offsets).sum(axis=1)
    if len(np.unique(distances)) < len(distances):
        return  # which of two equally near ones is the fifth may depend on the order
    order = np.argsort(proposals.scores, kind="stable")[::-1]
    shuffled = Proposals(proposals.boxes_xyxy[order], proposals.scores[order])
    one, other = merge(proposals, x, y, "mean"), merge(shuffled, x, y, "mean")
    assert (one is None) == (other is None)
    if one is not None:
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_equally_likely_boxes_do_not_add_up() -> None:
    # In the official code two boxes of the best score sum to one twice as large.
    twins = proposals_of((10, 10, 50, 50, 0.5), (12, 12, 60, 60, 0.5))
    np.testing.assert_array_equal(merge(twins, 30, 30, "best"), [10, 10, 50, 50])


def test_a_click_on_a_boxs_edge_is_not_inside_it() -> None:
    one = proposals_of((10, 10, 50, 50, 0.9))
    assert merge(one, 10, 30, "best") is None
    assert merge(one, 10.1, 30, "best") is not None


def test_the_mean_leans_to_the_likelier_box() -> None:
    two = proposals_of((0, 0, 40, 40, 0.75), (20, 20, 80, 80, 0.25))
    np.testing.assert_allclose(merge(two, 30, 30, "mean"), [5, 5, 50, 50])


def embedding_with(proposals: Proposals | None, original_size_hw: tuple[int, int]) -> Embedding:
    plain = embedding_of(original_size_hw, input_size=SIZE)
    return Embedding(**{**vars(plain), "proposals": proposals})


def test_a_click_gets_its_box_in_original_pixels_cut_at_the_images_border() -> None:
    # 512 x 256 fills the input's upper half: what reaches below y = 128 lies in the padding.
    embedding = embedding_with(proposals_of((32, 64, 160, 250, 0.9)), (256, 512))
    prompt = with_proposed_box(click(150, 200), embedding, "best")
    assert prompt.box_xyxy is not None
    np.testing.assert_allclose(prompt.box_xyxy, [64, 128, 320, 256])
    np.testing.assert_array_equal(prompt.point_coords, [[150, 200]])


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(Prompt.from_clicks([(150, 200, 0)]), id="negative click"),
        pytest.param(Prompt.from_clicks([(150, 200, 1), (20, 20, 0)]), id="two clicks"),
        pytest.param(Prompt.from_clicks(box_xyxy=(100, 100, 300, 250)), id="box"),
        pytest.param(Prompt.from_clicks([(10, 10, 1)]), id="click beside every proposal"),
        pytest.param(
            Prompt.from_clicks([(150, 200, 1)], mask_input=np.zeros((64, 64), np.float32)),
            id="click with an earlier mask",
        ),
    ],
)
def test_whatever_says_more_than_a_click_stays_as_it_is(prompt: Prompt) -> None:
    embedding = embedding_with(proposals_of((32, 64, 160, 120, 0.9)), (256, 512))
    assert with_proposed_box(prompt, embedding, "best") is prompt


def test_a_click_outside_the_image_is_told_as_without_the_prior() -> None:
    embedding = embedding_with(proposals_of((32, 64, 160, 250, 0.9)), (256, 512))
    with pytest.raises(PromptError, match="click lies outside"):
        with_proposed_box(click(150, 300), embedding, "best")


def test_an_embedding_made_without_proposals_is_refused() -> None:
    with pytest.raises(ValueError, match="proposals"):
        with_proposed_box(click(150, 200), embedding_with(None, (256, 512)), "best")


def test_keeping_an_embedding_costs_its_proposals_too() -> None:
    plain = embedding_with(None, (256, 512))
    full = embedding_with(proposals_of((32, 64, 160, 250, 0.9), (1, 2, 3, 4, 0.5)), (256, 512))
    assert full.nbytes == plain.nbytes + 40
