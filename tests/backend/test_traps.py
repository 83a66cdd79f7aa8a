"""The traps of CONTRACT.md section 0 that a backend can fall into, by their numbers there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.label_studio import LabelStudioSettings
from edgesam_core.rle import brush_rle_to_mask
from tests.backend.conftest import (
    MakeClient,
    PictureHost,
    body,
    keypoint,
    mask_of,
    picture_uri,
    recorded,
    rectangle,
)
from tests.backend.hosts import FakeLabelStudio, running


def predict(client: FlaskClient, sent: dict[str, Any]) -> list[dict[str, Any]]:
    response = client.post("/predict", json=sent)
    assert response.status_code == 200, response.json
    return list(response.json["results"])


def test_trap_1_every_mask_has_an_id_of_its_own(client: FlaskClient) -> None:
    sent = body(rectangle(10, 10, 20, 20), rectangle(50, 50, 20, 20))
    ids = [r["id"] for _ in range(5) for r in predict(client, sent)[0]["result"]]
    assert len(set(ids)) == len(ids) == 10
    assert not set(ids) & {r["id"] for r in sent["params"]["context"]["result"]}


def test_trap_3_the_token_of_setup_is_never_used(make_client: MakeClient) -> None:
    with running(FakeLabelStudio()) as host:
        assert isinstance(host, FakeLabelStudio)
        client = make_client(label_studio=LabelStudioSettings(url=host.url))
        claimed = {"hostname": "http://127.0.0.1:1", "access_token": host.legacy, "project": "1.1"}
        assert client.post("/setup", json=claimed).json["model_version"]
        response = client.post(
            "/predict", json=body(keypoint(50, 50), image="/data/upload/1/a.png")
        )
        assert response.status_code == 502
        assert "LABEL_STUDIO_API_KEY" in response.json["error"]
        assert host.legacy not in response.text
        asked = [headers for path, headers in host.seen if path.startswith("/data/")]
        assert asked, "LABEL_STUDIO_URL is asked, not what /setup called itself"
        assert all("Authorization" not in headers for headers in asked)


def test_trap_4_pending_prompts_of_a_group_are_answered_together(
    shared: Path, make_client: MakeClient, pictures: PictureHost
) -> None:
    client = make_client(label_studio=LabelStudioSettings(url=pictures.url))
    points = recorded(shared, "ui_keypoints_negative_then_positive", host=pictures.url)["body"]
    (answer,) = predict(client, points)
    (region,) = answer["result"]
    assert region["meta"]["edgesam"]["prompt"]["labels"] == [0, 1]
    boxes = recorded(shared, "ui_rectangles_two", host=pictures.url)["body"]
    assert len(predict(client, boxes)[0]["result"]) == 2


@pytest.mark.parametrize("name", ["ui_empty_context_after_submit", "predict_open_task"])
def test_trap_6_no_prompt_is_no_work(
    shared: Path, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr("backend.model.ServedModel.segmenter", fail)
    (result,) = predict(client, recorded(shared, name)["body"])
    assert result["result"] == []


@pytest.mark.parametrize("name", ["predict_open_task", "predict_batch", "predict_test"])
def test_trap_7_opening_a_task_is_answered_with_one_empty_result_and_a_version(
    shared: Path, client: FlaskClient, name: str
) -> None:
    sent = recorded(shared, name)["body"]
    results = predict(client, sent)
    assert len(results) == len(sent["tasks"])
    for result in results:
        assert result["result"] == []
        assert isinstance(result["model_version"], str)
        assert result["model_version"]


@pytest.mark.parametrize(
    ("width", "height"), [(640, 480), (333, 517), (1, 1), (1000, 3)], ids=lambda n: str(n)
)
def test_trap_9_the_rle_has_exactly_the_samples_of_the_size_on_the_page(
    client: FlaskClient, width: int, height: int
) -> None:
    sent = body(
        keypoint(50, 50, original_width=width, original_height=height),
        image=picture_uri(width, height),
    )
    (region,) = predict(client, sent)[0]["result"]
    samples = int.from_bytes(bytes(region["value"]["rle"][:4]))
    assert samples == width * height * 4
    assert mask_of(region).shape == (height, width)


def test_trap_9_an_image_with_exif_rotation_is_answered_upright(
    shared: Path, make_client: MakeClient, pictures: PictureHost
) -> None:
    client = make_client(label_studio=LabelStudioSettings(url=pictures.url))
    sent = recorded(shared, "ui_keypoint_exif", host=pictures.url)["body"]
    (region,) = predict(client, sent)[0]["result"]
    assert (region["original_width"], region["original_height"]) == (480, 640)
    prompt = sent["params"]["context"]["result"][0]["value"]
    rows, columns = np.nonzero(brush_rle_to_mask(region["value"]["rle"], (640, 480)))
    expected = (prompt["x"] * 4.8, prompt["y"] * 6.4)
    assert (columns.mean(), rows.mean()) == pytest.approx(expected, abs=4)


def test_trap_10_only_the_page_that_was_clicked_is_answered_and_it_is_named(
    shared: Path, make_client: MakeClient, pictures: PictureHost
) -> None:
    client = make_client(label_studio=LabelStudioSettings(url=pictures.url))
    for name, page, size in (
        ("ui_multi_image_page1", 0, (640, 480)),
        ("ui_multi_image_page2", 1, (300, 200)),
    ):
        sent = recorded(shared, name, host=pictures.url)["body"]
        (region,) = predict(client, sent)[0]["result"]
        assert region["item_index"] == page
        assert (region["original_width"], region["original_height"]) == size
    assert any("p2.png" in path for path in pictures.paths())
