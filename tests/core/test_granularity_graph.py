"""The network, its parity with the published one, and the bundle that carries it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgesam_core.bundle import WEIGHTS_NAME, Bundle
from edgesam_core.encode import Embedding
from edgesam_core.errors import BundleError
from edgesam_core.export.granularity import (
    check_granularity_parity,
    export_encoder_with_features,
    export_granularity,
)
from edgesam_core.export.write_bundle import write_bundle
from edgesam_core.granularity import MERGE_RULES, anchors, merge, nearest, propose
from edgesam_core.manifest import GRANULARITY_NAME
from edgesam_core.nn.checkpoint import load_state_dict, official_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.family import model_from
from edgesam_core.nn.granularity import GranularityPrior, build_granularity_prior, halve
from edgesam_core.nn.repvit import stage_outputs
from edgesam_core.preprocess import preprocess
from edgesam_core.segmenter import Segmenter, with_proposed_box
from tests.core.conftest import click, disc_picture
from tests.core.networks import randomise

SIZE = 192  # no multiple of 128: the two coarsest levels have 3 and 2 cells a side
Recorded = dict[str, Any]


def random_prior(seed: int = 0) -> GranularityPrior:
    """In evaluation mode, every norm random, a third of all anchors likely."""
    torch.manual_seed(seed)
    prior = randomise(GranularityPrior().eval())
    bias = prior.rpn_head.cls_header.pointwise_conv.bias
    assert bias is not None
    nn.init.normal_(bias, -2, 0.5)
    return prior


@pytest.fixture(scope="module")
def prior() -> GranularityPrior:
    return random_prior()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, prior: GranularityPrior, tmp_path_factory: Any) -> Bundle:
    """The tiny bundle's model with a prior beside it, made from a checkpoint of both."""
    both = {**read_checkpoint(tiny_bundle / WEIGHTS_NAME), **prior.state_dict()}
    folder = tmp_path_factory.mktemp("bundles") / "granular"
    write_bundle(both, folder, name="granular", input_size=256)
    return Bundle.open(folder)


def test_the_432_published_tensors_load_strictly_and_come_back(shared: Path) -> None:
    text = (shared / "parity" / "state_dict_keys_rpn.json").read_text()
    shapes: dict[str, list[int]] = json.loads(text)
    assert len(shapes) == 432
    torch.manual_seed(1)
    tensors = {key: torch.rand(shape) for key, shape in shapes.items()}
    counted = {k: v.long() for k, v in tensors.items() if k.endswith("num_batches_tracked")}
    prior = build_granularity_prior(tensors | counted)
    assert prior is not None
    assert sum(parameter.numel() for parameter in prior.parameters()) == 258_726
    state = prior.state_dict()
    assert state.keys() == shapes.keys()
    assert all(torch.equal(state[key], value) for key, value in (tensors | counted).items())


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "first projection"])
def test_a_prior_that_does_not_fit_is_refused(prior: GranularityPrior, change: str) -> None:
    tensors = dict(prior.state_dict())
    if change == "missing":
        del tensors["rpn_head.cls_header.pointwise_conv.bias"]
    elif change == "unknown":
        tensors["fpn.more"] = torch.zeros(1)
    elif change == "shape":
        tensors["fpn.bifpn.1.p6_w1"] = torch.zeros(3)
    else:
        del tensors["fpn.bifpn.0.p3_down_channel.down_conv.weight"]
    with pytest.raises(BundleError, match="granularity prior"):
        build_granularity_prior(tensors)


def test_a_checkpoint_without_the_432_tensors_has_no_prior(model: EdgeSam) -> None:
    assert build_granularity_prior(official_state_dict(model)) is None


def test_edge_sam_loads_from_a_checkpoint_that_has_a_prior_beside_it(
    model: EdgeSam, prior: GranularityPrior
) -> None:
    both = {**official_state_dict(model), **prior.state_dict()}
    loaded = EdgeSam()
    load_state_dict(loaded, both)
    ours = official_state_dict(loaded)
    assert all(torch.equal(ours[key], value) for key, value in official_state_dict(model).items())


@pytest.mark.parametrize("side", [1, 2, 3, 6, 7, 8])
def test_halving_pads_with_zeros_as_tensorflow_does(side: int) -> None:
    x = -torch.rand(1, 2, side, side) - 1
    padding = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
    before = padding // 2
    padded = np.zeros((2, side + padding, side + padding), np.float32)
    padded[:, before : before + side, before : before + side] = x[0].numpy()
    cells = range(-(-side // 2))
    expected = [
        [[c[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max() for j in cells] for i in cells]
        for c in padded
    ]
    np.testing.assert_array_equal(halve(x)[0].numpy(), np.array(expected, np.float32))


@pytest.mark.parametrize("size", [64, 192, 256])
def test_every_anchor_gets_an_answer_at_every_input_size(
    model: EdgeSam, prior: GranularityPrior, size: int
) -> None:
    with torch.no_grad():
        _, *features = stage_outputs(model.image_encoder.backbone, torch.zeros(2, 3, size, size))
        logits, deltas = prior(*features)
    assert logits.shape == (2, len(anchors(size)))
    assert deltas.shape == (2, len(anchors(size)), 4)


@pytest.mark.slow
def test_both_graphs_equal_pytorch(model: EdgeSam, prior: GranularityPrior, tmp_path: Path) -> None:
    encoder, granularity = tmp_path / "encoder.onnx", tmp_path / GRANULARITY_NAME
    export_encoder_with_features(model, encoder, input_size=SIZE)
    export_granularity(prior, granularity, input_size=SIZE)
    worst = check_granularity_parity(model, prior, encoder, granularity, input_size=SIZE)
    assert worst < 1e-4
    with pytest.raises(BundleError, match="differs from PyTorch"):
        check_granularity_parity(model, random_prior(1), encoder, granularity, input_size=SIZE)
    broken = random_prior()
    for parameter in broken.rpn_head.reg_header.parameters():
        nn.init.constant_(parameter, float("nan"))  # the deltas only, which come second
    with pytest.raises(BundleError, match="by nan"):
        check_granularity_parity(model, broken, encoder, granularity, input_size=SIZE)


def test_a_checkpoint_of_both_becomes_a_bundle_of_three_graphs_with_all_1253_tensors(
    bundle: Bundle, prior: GranularityPrior
) -> None:
    assert bundle.granularity_path == bundle.path / GRANULARITY_NAME
    weights = read_checkpoint(bundle.path / WEIGHTS_NAME)
    assert len(weights) == 1253
    again = build_granularity_prior(weights)
    assert again is not None
    assert model_from(weights).architecture == "edge_sam"
    for key, value in prior.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, atol=2e-3, rtol=2e-3)


def test_without_asking_for_proposals_a_bundle_with_a_prior_answers_as_one_without(
    bundle: Bundle, tiny_bundle: Path
) -> None:
    plain_bundle = Bundle.open(tiny_bundle)
    assert plain_bundle.granularity_path is None
    picture = disc_picture(3)
    plain, granular = Segmenter(plain_bundle, threads=1), Segmenter(bundle, threads=1)
    expected, actual = plain.embed(picture), granular.embed(picture)
    assert actual.proposals is None
    np.testing.assert_allclose(actual.image_embedding, expected.image_embedding, atol=1e-4)
    with pytest.raises(BundleError, match="no granularity prior"):
        plain.embed(picture, with_proposals=True)


@pytest.fixture(scope="module")
def embedded(bundle: Bundle) -> tuple[Segmenter, Embedding]:
    segmenter = Segmenter(bundle, threads=1)
    return segmenter, segmenter.embed(disc_picture(3), with_proposals=True)


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_a_click_with_the_prior_is_a_click_and_a_box_without(
    embedded: tuple[Segmenter, Embedding], rule: Any
) -> None:
    segmenter, embedding = embedded
    prompt = click(60, 45)
    joined = with_proposed_box(prompt, embedding, rule)
    assert joined.box_xyxy is not None
    (with_prior,) = segmenter.segment(embedding, [prompt], merge_rule=rule)
    (by_hand,) = segmenter.segment(embedding, [joined])
    (alone,) = segmenter.segment(embedding, [prompt])
    np.testing.assert_array_equal(with_prior.low_res_logits, by_hand.low_res_logits)
    assert with_prior.candidate_index == 0
    assert not np.array_equal(with_prior.low_res_logits, alone.low_res_logits)


def test_proposals_of_the_graph_are_those_of_pytorch(
    embedded: tuple[Segmenter, Embedding], bundle: Bundle
) -> None:
    weights = read_checkpoint(bundle.path / WEIGHTS_NAME)
    model, prior = EdgeSam().eval(), build_granularity_prior(weights)
    assert prior is not None
    load_state_dict(model, weights)
    image, _ = preprocess(disc_picture(3), 256)
    with torch.no_grad():
        _, *features = stage_outputs(model.image_encoder.backbone, torch.from_numpy(image))
        logits, deltas = prior(*features)
    expected = propose(logits[0].numpy(), deltas[0].numpy(), 256)
    actual = embedded[1].proposals
    assert actual is not None
    assert len(actual.scores) > 100
    assert abs(len(actual.scores) - len(expected.scores)) <= 2  # next to the threshold
    for ours, theirs in ((actual, expected), (expected, actual)):
        x, y = ours.boxes_xyxy[0, :2] + 0.5
        np.testing.assert_allclose(
            nearest(ours, x, y).boxes_xyxy[0], nearest(theirs, x, y).boxes_xyxy[0], atol=0.01
        )


# The published network: as rpn.npz recorded it with the parity weights.


@pytest.fixture(scope="module")
def published(parity_inputs: ModuleType) -> tuple[EdgeSam, GranularityPrior]:
    weights = {
        k: torch.from_numpy(np.asarray(v)) for k, v in parity_inputs.state_dict(True).items()
    }
    prior = build_granularity_prior(weights)
    assert prior is not None
    model = EdgeSam().eval()
    load_state_dict(model, weights)
    return model, prior


@pytest.mark.slow
@pytest.mark.parametrize("image", ["landscape", "portrait"])
def test_features_proposals_and_merged_boxes_are_the_published_ones(
    shared: Path, parity_inputs: ModuleType, published: Any, image: str
) -> None:
    model, prior = published
    recorded = np.load(shared / "parity" / "rpn.npz")
    info = json.loads((shared / "parity" / "rpn_info.json").read_text())
    pixels, _ = preprocess(parity_inputs.IMAGES[image](), 1024)
    with torch.no_grad():
        _, *features = stage_outputs(model.image_encoder.backbone, torch.from_numpy(pixels))
        levels = prior.fpn(features)
        logits, deltas = prior.rpn_head(levels)
        flat_logits, flat_deltas = prior(*features)
    for name, maps in (("fpn", levels), ("cls", logits), ("reg", deltas)):
        for level, tensor in enumerate(maps):
            positions = parity_inputs.sample_index(f"{name}{level}", tensor.numel(), 2048)
            # fp32 in another order: 8e-6 was measured.
            np.testing.assert_allclose(
                tensor.numpy().reshape(-1)[positions], recorded[f"{image}.{name}{level}"], atol=5e-5
            )

    proposals = propose(flat_logits[0].numpy(), flat_deltas[0].numpy(), 1024)
    assert len(proposals.scores) == info[f"{image}.n_proposals_thr0.1"]
    top = np.argsort(-proposals.scores, kind="stable")[:200]
    np.testing.assert_allclose(
        proposals.boxes_xyxy[top], recorded[f"{image}.top200.boxes"], atol=0.01
    )
    np.testing.assert_allclose(proposals.scores[top], recorded[f"{image}.top200.scores"], atol=1e-5)

    with torch.no_grad():
        embedding = model.encode(torch.from_numpy(pixels))
    for case in ("point", "pos_neg", "points3"):
        key = f"{image}.{case}"
        x, y = recorded[f"{key}.point1024"]
        five = nearest(proposals, x, y)
        np.testing.assert_allclose(five.boxes_xyxy, recorded[f"{key}.knn5.boxes"], atol=0.01)
        np.testing.assert_allclose(five.scores, recorded[f"{key}.knn5.scores"], atol=1e-5)
        code, paper = merge(proposals, x, y, "best"), merge(proposals, x, y, "mean")
        assert code is not None
        assert paper is not None
        np.testing.assert_allclose(code, recorded[f"{key}.merged_code"], atol=0.01)
        np.testing.assert_allclose(paper, recorded[f"{key}.merged_paper"], atol=0.01)
        with torch.no_grad():
            low_res_logits, ious = model.decode(
                embedding,
                point_coords=torch.tensor([[[x, y]]]),
                point_labels=torch.ones(1, 1),
                box_xyxy=torch.from_numpy(code)[None],
            )
        positions = parity_inputs.sample_index("low_res", 65536)[::4]
        np.testing.assert_allclose(
            low_res_logits[0].flatten(1).numpy()[:, positions],
            recorded[f"{key}.low_res.samples"],
            atol=1e-3,
        )
        np.testing.assert_allclose(ious[0].numpy(), recorded[f"{key}.iou"], atol=1e-4)
