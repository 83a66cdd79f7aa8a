from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.label_studio import LabelStudioSettings
from backend.model import ModelSettings
from backend.results import ResultSettings
from backend.routes import project_id_of
from backend.settings import ServerSettings
from edgesam_core.errors import RequestError
from edgesam_core.manifest import Manifest
from tests.backend.conftest import (
    BRUSH_CONFIG,
    MakeClient,
    body,
    keypoint,
    mask_of,
    picture_uri,
    rectangle,
)
from tests.backend.disc_bundle import write_disc_bundle

LABELS = '<Label value="Cat"/><Label value="Dog"/>'
SMART = '<KeyPointLabels name="tag2" toName="image" smart="true">' + LABELS + "</KeyPointLabels>"


def version_of(bundle: Path) -> str:
    return Manifest.from_json((bundle / "manifest.json").read_text(encoding="utf-8")).version


def answer(client: FlaskClient, *regions: Any, **more: Any) -> list[dict[str, Any]]:
    response = client.post("/predict", json=body(*regions, **more))
    assert response.status_code == 200, response.json
    (prediction,) = response.json["results"]
    return list(prediction["result"])


# What Label Studio calls


def test_health_and_setup_answer_before_the_model_is_loaded(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, disc_bundle: Path
) -> None:
    monkeypatch.setattr("backend.model.ServedModel.segmenter", lambda *_: time.sleep(60))
    health = client.get("/health")
    assert health.status_code == 200
    assert health.json == {"status": "UP", "model_class": "EdgeSAMBackend"}
    assert client.post("/setup", json={}).json == {"model_version": version_of(disc_bundle)}


def test_ready_says_when_the_model_is(client: FlaskClient, disc_bundle: Path) -> None:
    client.application.extensions["edgesam"].models.own.segmenter()
    response = client.get("/ready")
    assert response.status_code == 200
    assert response.json == {"status": "READY", "model_version": version_of(disc_bundle)}


def test_a_model_that_cannot_be_opened_is_not_ready_and_says_why(
    make_client: MakeClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = write_disc_bundle(tmp_path / "torn")
    (bundle / "encoder.onnx").write_bytes(b"torn")
    client = make_client(model=ModelSettings(name=str(bundle)))
    for _ in range(200):
        response = client.get("/ready")
        if response.status_code == 500:
            break
        time.sleep(0.02)
    assert "encoder.onnx" in response.json["error"]
    assert client.post("/predict", json=body(keypoint(50, 50))).status_code == 500
    assert client.get("/health").status_code == 200
    assert str(tmp_path) not in response.text
    assert "encoder.onnx" in caplog.text


def test_no_model_at_all_is_told_with_the_names_that_there_are(
    make_client: MakeClient, tmp_path: Path
) -> None:
    write_disc_bundle(tmp_path / "models" / "mine")
    client = make_client(model=ModelSettings(name="nobody", models_dir=tmp_path / "models"))
    response = client.post("/setup", json={})
    assert response.status_code == 500
    assert "mine" in response.json["error"]
    assert client.get("/health").status_code == 200
    assert 'edgesam_errors_total{code="bundle_error"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_versions_are_listed(client: FlaskClient, disc_bundle: Path, method: str) -> None:
    response = client.open("/versions", method=method, json={} if method == "POST" else None)
    assert response.json == {"versions": [version_of(disc_bundle)]}


@pytest.mark.parametrize(
    "action",
    [
        "ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "PROJECT_UPDATED",
        "TASKS_CREATED", "TASKS_DELETED", "ANNOTATIONS_CREATED", "LABEL_LINK_CREATED", "WHATEVER",
        None, 7,
    ],
)  # fmt: skip
def test_webhooks_are_answered_and_passed_over(client: FlaskClient, action: Any) -> None:
    response = client.post("/webhook", json={"action": action, "project": {"id": 1}})
    assert response.status_code == 200
    assert response.json["status"] == "ignored"


def test_the_rarely_called_routes_answer(client: FlaskClient) -> None:
    assert client.get("/").json["model"] == "disc"
    assert client.post("/delete", json={}).status_code == 200
    assert client.post("/duplicate_model", json={}).json["model_version"]
    assert client.post("/validate", json={"config": BRUSH_CONFIG}).json == {"valid": True}
    assert client.post("/validate", json={"config": "<View/>"}).status_code == 422


def test_metrics_tell_hits_and_misses_and_the_model(client: FlaskClient, disc_bundle: Path) -> None:
    answer(client, keypoint(50, 50))
    answer(client, keypoint(50, 50))
    client.get("/nowhere")
    text = client.get("/metrics").text
    assert 'edgesam_embedding_cache_total{outcome="miss"} 1.0' in text
    assert 'edgesam_embedding_cache_total{outcome="hit"} 1.0' in text
    assert f'edgesam_model_info{{name="disc",version="{version_of(disc_bundle)}"}} 1.0' in text
    assert 'edgesam_errors_total{code="not_found"} 1.0' in text
    assert 'edgesam_request_seconds_count{route="predict",status="200"} 2.0' in text
    assert 'edgesam_stage_seconds_count{stage="decode"} 2.0' in text


def test_two_applications_have_metrics_of_their_own(make_client: MakeClient) -> None:
    first, second = make_client(), make_client()
    answer(first, keypoint(50, 50))
    assert 'route="predict"' not in second.get("/metrics").text


def test_a_hostname_that_differs_is_logged_once(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(label_studio=LabelStudioSettings(url="http://ls:8080/sub"))
    for hostname in ("http://ls:8080/sub/", "http://other:1", "http://other:1", None, 7):
        client.post("/setup", json={"hostname": hostname, "access_token": "s3cret-token"})
    client.post("/setup", json={"hostname": "http://user:pass@third/"})
    lines = [r.getMessage() for r in caplog.records if "calls itself" in r.getMessage()]
    assert len(lines) == 2
    assert "http://other:1" in lines[0]
    assert "LABEL_STUDIO_URL" in lines[0]
    assert "pass" not in lines[1]
    assert "s3cret" not in caplog.text


# Prompts become masks


def test_a_click_becomes_a_mask_where_it_was_made(client: FlaskClient) -> None:
    (region,) = answer(client, keypoint(25, 50))
    rows, columns = np.nonzero(mask_of(region))
    assert (columns.mean(), rows.mean()) == pytest.approx((160, 240), abs=3)
    assert region["value"]["brushlabels"] == ["Cat"]
    assert region["from_name"] == "tag"
    assert 0 < region["score"] <= 1


def test_a_negative_click_takes_away(client: FlaskClient) -> None:
    (before,) = answer(client, keypoint(50, 50))
    (after,) = answer(client, keypoint(50, 50), keypoint(53, 50, positive=False))
    x, y = int(0.53 * 640), 240
    assert mask_of(before)[y, x]
    assert not mask_of(after)[y, x]
    assert mask_of(after)[y, 310]


def test_several_rectangles_give_a_region_each(client: FlaskClient) -> None:
    first, second = answer(client, rectangle(10, 10, 20, 30), rectangle(60, 60, 30, 30))
    assert first["id"] != second["id"]
    for region, box in ((first, (64, 48, 192, 192)), (second, (384, 288, 576, 432))):
        rows, columns = np.nonzero(mask_of(region))
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == pytest.approx(
            box, abs=6
        )


def test_a_rotated_rectangle_gives_the_box_around_it(client: FlaskClient) -> None:
    (region,) = answer(client, rectangle(50, 50, 20, 10, rotation=90))
    rows, columns = np.nonzero(mask_of(region))
    # 128 x 48 px hang down from (320, 240): 48 wide to its left, 128 high.
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == pytest.approx(
        (272, 240, 320, 368), abs=6
    )
    assert region["meta"]["edgesam"]["prompt"]["box"] == pytest.approx([272, 240, 320, 368])


def test_points_and_a_box_together_make_one_region(client: FlaskClient) -> None:
    (region,) = answer(client, rectangle(10, 10, 50, 50), keypoint(20, 20, positive=False))
    mask = mask_of(region)
    assert not mask[96, 128]
    assert mask[200, 300]


def test_labels_are_those_that_were_drawn(client: FlaskClient) -> None:
    cat, dog = answer(client, keypoint(20, 20), keypoint(70, 70, label="Dog"))
    assert cat["value"]["brushlabels"] == ["Cat"]
    assert dog["value"]["brushlabels"] == ["Dog"]


def test_a_drawn_label_that_the_control_lacks_is_left_out_and_logged(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backend")
    (region,) = answer(client, keypoint(20, 20, label="Cow"))
    assert "brushlabels" not in region["value"]
    assert "without a label" in caplog.text


@pytest.mark.parametrize(
    ("control", "kind", "key"),
    [
        (f'<PolygonLabels name="o" toName="image">{LABELS}</PolygonLabels>', "polygon", "points"),
        (f'<BitmaskLabels name="o" toName="image">{LABELS}</BitmaskLabels>', "bitmask",
         "imageDataURL"),
        (f'<RectangleLabels name="o" toName="image">{LABELS}</RectangleLabels>', "rectangle",
         "width"),
        (f'<BrushLabels name="o" toName="image">{LABELS}</BrushLabels>', "brush", "rle"),
    ],
)  # fmt: skip
def test_the_config_decides_the_form(
    client: FlaskClient, control: str, kind: str, key: str
) -> None:
    xml = f'<View><Image name="image" value="$image"/>{control}{SMART}</View>'
    (region,) = answer(client, keypoint(50, 50), config=xml)
    assert (region["type"], region["from_name"]) == (f"{kind}labels", "o")
    assert key in region["value"]
    assert region["value"][f"{kind}labels"] == ["Cat"]


def test_boxes_beside_masks_where_they_are_asked_for(make_client: MakeClient) -> None:
    client = make_client(results=ResultSettings(outputs="all"))
    control = f'<RectangleLabels name="boxes" toName="image">{LABELS}</RectangleLabels>'
    xml = BRUSH_CONFIG.replace("<BrushLabels", control + "<BrushLabels")
    brush, box = answer(client, keypoint(50, 50), config=xml)
    assert (brush["type"], box["type"]) == ("brushlabels", "rectanglelabels")
    assert brush["id"] != box["id"]


def test_the_config_is_that_of_the_request(client: FlaskClient) -> None:
    polygon = BRUSH_CONFIG.replace("BrushLabels", "PolygonLabels")
    types = [
        answer(client, keypoint(50, 50), config=config)[0]["type"]
        for config in (BRUSH_CONFIG, polygon, BRUSH_CONFIG)
    ]
    assert types == ["brushlabels", "polygonlabels", "brushlabels"]


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        pytest.param(None, "no context", id="no context"),
        pytest.param({"result": []}, "no prompt", id="no prompt"),
        pytest.param(
            {"result": [keypoint(5, 5, positive=False)]}, "only negative", id="only negative"
        ),
    ],
)
def test_an_empty_result_has_one_of_three_reasons_and_the_log_says_which(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, context: Any, reason: str
) -> None:
    caplog.set_level(logging.INFO, "backend")
    sent = {**body(), "params": {"context": context}, "label_config": None}
    sent["tasks"] *= 3
    response = client.post("/predict", json=sent)
    version = response.json["model_version"]
    empty = {"result": [], "score": 0.0, "model_version": version}
    assert response.json["results"] == [empty] * 3
    assert f"empty result: {reason}" in caplog.text


def test_there_is_one_result_per_task_always(client: FlaskClient) -> None:
    sent = body(keypoint(50, 50))
    sent["tasks"] *= 2
    results = client.post("/predict", json=sent).json["results"]
    assert [len(result["result"]) for result in results] == [1, 1]
    assert client.post("/predict", json={**sent, "tasks": []}).json["results"] == []


def test_a_request_leaves_one_line_with_everything_but_its_content(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backend")
    client.application.extensions["edgesam"].models.own.segmenter()
    response = client.post(
        "/predict", json=body(keypoint(50, 50)), headers={"X-Request-ID": "my-id.1"}
    )
    assert response.headers["X-Request-ID"] == "my-id.1"
    (line,) = [r.getMessage() for r in caplog.records if r.name == "backend.app"]
    for part in ("predict 200", "project=1", "task=4", "model_version=", "cold", "encode ", "ms"):
        assert part in line
    assert "data:" not in line
    caplog.clear()
    client.post("/predict", json=body(keypoint(50, 50)))
    assert " warm " in caplog.text
    client.get("/health")
    assert "health" not in caplog.text


# What goes wrong


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        pytest.param(body(keypoint(150, 50)), 422, "prompt_error", id="click outside"),
        pytest.param(body(rectangle(120, 50, 9, 9)), 422, "prompt_error", id="box outside"),
        pytest.param(
            body(keypoint(50, 50, type="brushlabels")), 422, "prompt_error", id="unknown type"
        ),
        pytest.param(
            body(keypoint(50, 50), config="<View/>"), 422, "label_config_error", id="no image tag"
        ),
        pytest.param(
            body(keypoint(50, 50), config="<View"), 422, "label_config_error", id="no XML"
        ),
        pytest.param(
            body(keypoint(50, 50), config=None), 422, "label_config_error", id="no config"
        ),
        pytest.param(
            body(keypoint(50, 50), image=picture_uri(480, 640)), 422, "image_error", id="other size"
        ),
        pytest.param(
            body(keypoint(50, 50), image="data:image/png;base64,AAAA"),
            422,
            "image_error",
            id="no image",
        ),
        pytest.param(
            body(keypoint(50, 50), image="/data/upload/1/x.png"),
            502,
            "upstream_error",
            id="dead Label Studio",
        ),
        pytest.param(
            {**body(keypoint(50, 50)), "tasks": [{"id": 1}]}, 400, "request_error", id="no data"
        ),
        pytest.param(
            {**body(keypoint(50, 50)), "tasks": [{"id": 1, "data": {}}]},
            422,
            "image_error",
            id="no field",
        ),
        pytest.param({"tasks": "x"}, 400, "request_error", id="no tasks"),
        pytest.param({"tasks": [1]}, 400, "request_error", id="tasks of numbers"),
        pytest.param({"tasks": [], "params": [1]}, 400, "request_error", id="params no object"),
        pytest.param(
            {"tasks": [], "params": {"context": "x"}}, 400, "request_error", id="context no object"
        ),
        pytest.param({**body(), "project": "abc"}, 400, "request_error", id="no project"),
        pytest.param(
            {**body(), "params": {"context": {"event": "dance"}}},
            400,
            "request_error",
            id="unknown event",
        ),
    ],
)
def test_whatever_is_wrong_is_one_sentence_with_a_status_and_an_id(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, sent: Any, status: int, code: str
) -> None:
    response = client.post("/predict", json=sent)
    assert (response.status_code, response.json["code"]) == (status, code)
    assert set(response.json) == {"error", "code", "request_id"}
    assert response.json["request_id"] == response.headers["X-Request-ID"]
    sentence = response.json["error"]
    assert sentence.endswith(".")
    assert "Traceback" not in sentence
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert any(sentence in r.getMessage() for r in errors)


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        pytest.param("GET", "/nowhere", {}, 404, id="unknown path"),
        pytest.param("GET", "/predict", {}, 405, id="wrong method"),
        pytest.param("OPTIONS", "/predict", {}, 405, id="another wrong method"),
        pytest.param("POST", "/predict", {"data": "{}"}, 415, id="not declared as JSON"),
        pytest.param(
            "POST", "/predict", {"data": "{", "content_type": "application/json"}, 400, id="torn"
        ),
        pytest.param(
            "POST",
            "/predict",
            {"data": b"\xff\xfe\x00", "content_type": "application/json"},
            400,
            id="bytes",
        ),
        pytest.param(
            "POST",
            "/predict",
            {"data": "[" * 100_000, "content_type": "application/json"},
            400,
            id="deep",
        ),
        pytest.param("POST", "/predict", {"json": [1]}, 400, id="a list"),
        pytest.param("POST", "/setup", {"json": "x"}, 400, id="a string"),
    ],
)
def test_protocol_errors_are_sentences_too(
    client: FlaskClient, method: str, path: str, options: Any, status: int
) -> None:
    response = client.open(path, method=method, **options)
    assert response.status_code == status
    assert set(response.json) == {"error", "code", "request_id"}
    assert response.json["error"].endswith(".")


def test_five_megabytes_of_drafts_are_taken_and_a_larger_body_than_allowed_is_told(
    make_client: MakeClient,
) -> None:
    sent = body(keypoint(50, 50))
    sent["tasks"][0]["drafts"] = [{"result": [{"value": {"rle": [255] * 1_500_000}}]}]
    assert len(json.dumps(sent)) > 5e6
    assert make_client().post("/predict", json=sent).status_code == 200
    small = make_client(server=ServerSettings(max_body_bytes=1000))
    response = small.post("/predict", json=sent)
    assert response.status_code == 413
    assert "EDGESAM_MAX_BODY_BYTES" in response.json["error"]


def test_what_nobody_foresaw_is_told_without_its_inside(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("/secret/path and token abc")

    monkeypatch.setattr("backend.engine.read_prompts", fail)
    response = client.post("/predict", json=body(keypoint(50, 50)))
    assert response.status_code == 500
    assert response.json["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.json["request_id"] == response.headers["X-Request-ID"]
    assert "/secret/path" in caplog.text


def test_a_click_on_nothing_is_told_rather_than_answered_empty(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    # The stand-in's holes around negative clicks swallow the disc of the positive one.
    holes = [
        keypoint(50 + dx, 50 + dy, positive=False)
        for dx in range(-12, 13, 2)
        for dy in range(-16, 17, 3)
    ]
    response = client.post("/predict", json=body(keypoint(50, 50), *holes))
    assert response.status_code == 422
    assert response.json["code"] == "prompt_error"
    assert "finds nothing" in caplog.text


def test_a_busy_or_loading_model_says_when_to_come_back(
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    disc_bundle: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("backend.model._try_out", lambda _: time.sleep(1))
    client = make_client(model=ModelSettings(name=str(disc_bundle), load_wait_s=0.05))
    for response in (client.get("/ready"), client.post("/predict", json=body(keypoint(50, 50)))):
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        assert response.json["code"] == "unavailable"
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1  # a probe that asks while the model loads is not news


@pytest.mark.parametrize(
    ("project", "expected"),
    [("1.1795229737", 1), ("12", 12), (3, 3), ("", None), (None, None), (7.5, 7)],
)
def test_the_project_is_its_id(project: Any, expected: int | None) -> None:
    assert project_id_of(project) == expected


@pytest.mark.parametrize("project", ["x", "1.", "-1", True, {}, [1], "1.2.3", "9" * 30])
def test_a_project_that_is_no_id_is_refused(project: Any) -> None:
    with pytest.raises(RequestError):
        project_id_of(project)
