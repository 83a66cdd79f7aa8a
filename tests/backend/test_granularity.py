"""The granularity prior through the whole service: three switches, models with and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.embeddings import EmbeddingSettings, EmbeddingStore, embedding_key
from backend.granularity import GranularitySettings
from backend.model import ModelSettings
from edgesam_core.encode import Embedding
from edgesam_core.granularity import Proposals, anchors
from tests.backend.conftest import BRUSH_CONFIG, MakeClient, body, keypoint, mask_of, rectangle
from tests.backend.disc_bundle import write_disc_bundle

SIZE = 256
SMALL, LARGE = (104.0, 56.0, 168.0, 120.0), (80.0, 16.0, 208.0, 144.0)
"""Boxes around one place of the input, anchors of two levels, the large one likelier."""

PROJECT_MEAN = BRUSH_CONFIG.replace(
    '<KeyPointLabels name="tag2"', '<KeyPointLabels name="tag2" model_granularity_prior="mean"'
)


def likely_anchors() -> dict[int, float]:
    table = anchors(SIZE)
    logits = {SMALL: 0.0, LARGE: 1.0}  # objectness 0.5 and 0.731
    return {
        int(np.abs(table - np.array(box)).sum(axis=1).argmin()): logit
        for box, logit in logits.items()
    }


@pytest.fixture(scope="session")
def granular_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "granular"
    return write_disc_bundle(folder, likely_anchors=likely_anchors())


@pytest.fixture
def client(make_client: MakeClient, granular_bundle: Path) -> FlaskClient:
    """Serves a model with a prior; the server's setting is the default, off."""
    return make_client(model=ModelSettings(name=str(granular_bundle), threads=1))


def ask(client: FlaskClient, *regions: Any, prior: Any = None, **more: Any) -> dict[str, Any]:
    """The one region that answers; the picture has 640 x 480 pixels, 2.5 to one of the input."""
    sent = body(*regions, **more)
    if prior is not None:
        sent["params"]["context"]["granularity_prior"] = prior
    response = client.post("/predict", json=sent)
    assert response.status_code == 200, response.json
    (prediction,) = response.json["results"]
    (region,) = prediction["result"]
    return dict(region)


def box_of(region: dict[str, Any]) -> list[float]:
    """x0, y0, x1, y1 of the answered mask in the input's frame."""
    rows, columns = np.nonzero(mask_of(region))
    edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return (edges / 2.5).tolist()


CLICK = keypoint(50, 45)
"""At (320, 216) of the original, (128, 86.4) of the input: inside both boxes."""


def test_the_anchors_of_this_test_are_its_boxes() -> None:
    found = anchors(SIZE)[list(likely_anchors())]
    np.testing.assert_allclose(found, [SMALL, LARGE], atol=0.01)


def test_a_click_stays_alone_unless_somebody_asks(client: FlaskClient) -> None:
    region = ask(client, CLICK)
    x0, y0, x1, y1 = box_of(region)
    assert x1 - x0 < 60
    assert y1 - y0 < 60
    assert "proposed_box" not in region["meta"]["edgesam"]["prompt"]


def test_a_request_switches_it_on(client: FlaskClient) -> None:
    region = ask(client, CLICK, prior="best")
    assert box_of(region) == pytest.approx(LARGE, abs=2)
    prompt = region["meta"]["edgesam"]["prompt"]
    assert prompt["box"] is None
    assert prompt["points"] == [[320, 216]]
    assert prompt["proposed_box"] == pytest.approx([2.5 * edge for edge in LARGE], abs=0.1)


def test_the_mean_lies_between_the_boxes_nearer_to_the_likelier(client: FlaskClient) -> None:
    weights = np.array([0.5, 0.7311])
    mean = np.average([SMALL, LARGE], axis=0, weights=weights)
    assert box_of(ask(client, CLICK, prior="mean")) == pytest.approx(mean, abs=2)


def test_a_project_switches_it_on_and_a_request_off_again(client: FlaskClient) -> None:
    joined = ask(client, CLICK, config=PROJECT_MEAN)
    assert "proposed_box" in joined["meta"]["edgesam"]["prompt"]
    alone = ask(client, CLICK, config=PROJECT_MEAN, prior="off")
    assert "proposed_box" not in alone["meta"]["edgesam"]["prompt"]


def test_the_server_switches_it_on_and_a_project_off_again(
    make_client: MakeClient, granular_bundle: Path
) -> None:
    client = make_client(
        model=ModelSettings(name=str(granular_bundle), threads=1),
        granularity=GranularitySettings(prior="best"),
    )
    assert "proposed_box" in ask(client, CLICK)["meta"]["edgesam"]["prompt"]
    config = PROJECT_MEAN.replace('prior="mean"', 'prior="off"')
    assert "proposed_box" not in ask(client, CLICK, config=config)["meta"]["edgesam"]["prompt"]


@pytest.mark.parametrize(
    "regions",
    [
        pytest.param([CLICK, keypoint(52, 45, positive=False)], id="corrected click"),
        pytest.param([rectangle(20, 20, 30, 30)], id="rectangle"),
        pytest.param([keypoint(3, 95)], id="click that no proposal contains"),
    ],
)
def test_more_than_a_click_is_answered_as_without(client: FlaskClient, regions: list[Any]) -> None:
    with_prior, without = ask(client, *regions, prior="best"), ask(client, *regions)
    np.testing.assert_array_equal(mask_of(with_prior), mask_of(without))
    assert "proposed_box" not in with_prior["meta"]["edgesam"]["prompt"]


def test_an_image_is_encoded_once_for_each_setting_of_the_switch(client: FlaskClient) -> None:
    for prior in ("off", "best", "mean", "off", "best"):
        ask(client, CLICK, prior=prior)
    page = client.get("/metrics").text
    assert 'edgesam_embedding_cache_total{outcome="miss"} 2.0' in page
    assert 'edgesam_embedding_cache_total{outcome="hit"} 3.0' in page


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        pytest.param({"prior": "best"}, 400, "no granularity prior", id="request"),
        pytest.param({"config": PROJECT_MEAN}, 422, "model_granularity_prior", id="project"),
    ],
)
def test_a_model_without_one_says_so_where_it_was_asked_for(
    make_client: MakeClient, more: dict[str, Any], status: int, said: str
) -> None:
    prior = more.pop("prior", None)
    sent = body(CLICK, **more)
    if prior:
        sent["params"]["context"]["granularity_prior"] = prior
    response = make_client().post("/predict", json=sent)
    assert response.status_code == status
    assert said in response.json["error"]


def test_the_servers_default_means_nothing_to_a_model_without_one(make_client: MakeClient) -> None:
    region = ask(make_client(granularity=GranularitySettings(prior="mean")), CLICK)
    assert "proposed_box" not in region["meta"]["edgesam"]["prompt"]


@pytest.mark.parametrize("prior", ["yes", 1, ["best"], {}])
def test_a_choice_that_is_none_is_told_with_those_that_are(client: FlaskClient, prior: Any) -> None:
    sent = body(CLICK)
    sent["params"]["context"]["granularity_prior"] = prior
    response = client.post("/predict", json=sent)
    assert response.status_code == 400
    assert "off, best, mean" in response.json["error"]


def test_a_labelling_config_with_a_wrong_choice_is_not_valid(client: FlaskClient) -> None:
    config = PROJECT_MEAN.replace('prior="mean"', 'prior="average"')
    response = client.post("/validate", json={"config": config})
    assert response.status_code == 422
    assert "model_granularity_prior" in response.json["error"]


def test_proposals_are_kept_with_their_embedding_and_count_in_the_budget() -> None:
    boxes, scores = np.zeros((50, 4), np.float32), np.ones(50, np.float32)
    made = Embedding(
        image_embedding=np.zeros((1, 256, 4, 4), np.float32),
        original_size_hw=(48, 64),
        input_size_hw=(48, 64),
        input_size=64,
        bundle_version="v",
        proposals=Proposals(boxes, scores),
    )
    half_bytes = made.image_embedding.nbytes // 2
    enough = EmbeddingStore(EmbeddingSettings(cache_bytes=half_bytes + 1000))
    short = EmbeddingStore(EmbeddingSettings(cache_bytes=half_bytes + 999))
    for store in (enough, short):
        store.get_or_encode("k", lambda: made)
    kept = enough.get("k")
    assert kept is not None
    assert kept.proposals is made.proposals
    assert short.get("k") is None


def test_an_embedding_with_proposals_has_a_key_of_its_own() -> None:
    assert embedding_key("a", "v") != embedding_key("a", "v", with_proposals=True)
