"""What Label Studio sends along with every click, and what becomes of it: nothing."""

from __future__ import annotations

import gc
import json
import logging
import weakref
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.backend.conftest import BRUSH_CONFIG, body, keypoint

MARK = "drawn-by-somebody"


def heavy_body(*regions: Any) -> dict[str, Any]:
    """A click on a task with five megabytes of annotations, drafts and predictions."""
    sent = body(*regions)
    region = {"id": MARK, "type": "brushlabels", "value": {"rle": [255] * 250_000, "text": MARK}}
    for kind in ("annotations", "drafts", "predictions"):
        sent["tasks"][0][kind] = [{"id": 1, "result": [region, region]}]
    assert len(json.dumps(sent)) > 5e6
    return sent


@pytest.fixture
def parsed_lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the length of every text that is parsed as JSON."""
    lengths = []
    decode = json.JSONDecoder.decode

    def counted(self: json.JSONDecoder, text: str, *args: Any) -> Any:
        lengths.append(len(text))
        return decode(self, text, *args)

    monkeypatch.setattr(json.JSONDecoder, "decode", counted)
    return lengths


def test_a_click_with_megabytes_of_masks_parses_none_of_them(
    client: FlaskClient, parsed_lengths: list[int]
) -> None:
    data = json.dumps(heavy_body(keypoint(50, 50)))
    response = client.post("/predict", data=data, content_type="application/json")
    assert response.status_code == 200
    rest = len(data) - 6 * 250_000 * len("255, ")
    # What else is parsed meanwhile are manifests.
    assert [n for n in parsed_lengths if n > 2000] == [pytest.approx(rest, abs=20)]
    assert response.json["results"][0]["result"]


@pytest.mark.parametrize(
    ("route", "change", "status"),
    [
        pytest.param("/predict", {}, 200, id="answered"),
        pytest.param("/predict", {"params": {}}, 200, id="opened"),
        pytest.param("/predict", {"label_config": "<View/>"}, 422, id="refused"),
        pytest.param("/predict", {"params": {"context": MARK}}, 400, id="of another form"),
        pytest.param("/predict", None, 400, id="torn"),
        pytest.param("/predict", "fails", 500, id="not foreseen"),
        pytest.param("/webhook", {"action": "ANNOTATION_CREATED"}, 200, id="a webhook"),
        pytest.param("/setup", {}, 200, id="setup"),
    ],
)
def test_nothing_of_it_is_logged_at_any_level_or_answered(
    client: FlaskClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    route: str,
    change: Any,
    status: int,
) -> None:
    sent = heavy_body(keypoint(50, 50))
    data = json.dumps(sent | (change if isinstance(change, dict) else {}))
    if change == "fails":
        monkeypatch.setattr("backend.engine.read_prompts", lambda _: 1 / 0)
    # Names that were made with a level of their own are asked for everything, too.
    for name in ["", *logging.root.manager.loggerDict]:
        caplog.set_level(1, name or None)
    response = client.post(
        route, data=data if change is not None else data[:-5], content_type="application/json"
    )
    assert response.status_code == status
    assert caplog.records
    assert MARK not in caplog.text
    assert "255, 255" not in caplog.text
    assert MARK not in response.text
    assert max(len(record.getMessage()) for record in caplog.records) < 1000


class Part(dict[str, Any]):
    """An object of a body that can be watched."""


def test_nothing_of_a_task_is_kept_when_its_request_is_answered(client: FlaskClient) -> None:
    service = client.application.extensions["edgesam"]
    sent = heavy_body(keypoint(50, 50))
    draft = Part(sent["tasks"][0]["drafts"][0])
    task = Part(sent["tasks"][0], drafts=[draft])
    watched = [weakref.ref(draft), weakref.ref(task)]
    context = sent["params"]["context"]
    assert service.engine.predict(1, BRUSH_CONFIG, [task], context)[0]["result"]
    service.prefetch.opened(1, [task], BRUSH_CONFIG)
    service.prefetch.worked_on(1, task["id"], BRUSH_CONFIG)
    del sent, draft, task
    gc.collect()
    assert [part() for part in watched] == [None, None]
