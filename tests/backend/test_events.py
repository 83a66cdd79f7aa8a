from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.backend.conftest import body, keypoint, picture_uri


def ask(client: FlaskClient, event: str, **more: Any) -> Any:
    sent = {**body(), "params": {"context": {"event": event}}, **more}
    response = client.post("/predict", json=sent)
    assert response.status_code == 200, response.json
    (prediction,) = response.json["results"]
    assert prediction["model_version"]
    (item,) = prediction["result"]
    return item


def test_capabilities_tell_prompts_and_targets(client: FlaskClient) -> None:
    item = ask(client, "capabilities", label_config=None)
    assert item["type"] == "capabilities"
    assert item["value"]["prompts"] == ["point", "box"]
    assert item["value"]["model_info"]["name"] == "disc"


def test_a_prewarmed_image_needs_no_encoding_at_the_click(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backend")
    assert ask(client, "prewarm")["value"]["status"] == "ok"
    for _ in range(500):
        if 'edgesam_prefetches_total{outcome="encoded"} 1.0' in client.get("/metrics").text:
            break
        time.sleep(0.01)
    caplog.clear()
    assert client.post("/predict", json=body(keypoint(50, 50))).status_code == 200
    assert " warm " in caplog.text


def test_a_prewarm_that_fails_is_only_logged(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [{"id": 1, "data": {"image": picture_uri()[:200]}}]
    assert ask(client, "prewarm", tasks=broken)["value"]["status"] == "ok"
    for _ in range(500):
        if "encoded ahead" in caplog.text:
            break
        time.sleep(0.01)
    assert "encoded ahead" in caplog.text


def test_predict_is_the_event_that_everybody_means(client: FlaskClient) -> None:
    sent = body(keypoint(50, 50))
    sent["params"]["context"]["event"] = "predict"
    (prediction,) = client.post("/predict", json=sent).json["results"]
    assert prediction["result"]
