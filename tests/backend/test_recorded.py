"""Every request that Label Studio was seen to send, its pictures on a local server."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.app import create_app
from backend.auth import AuthSettings
from backend.label_studio import LabelStudioSettings
from backend.model import ModelSettings
from backend.settings import Settings
from tests.backend.conftest import PictureHost, mask_of, recorded
from tests.parts import shared_params


def client_of(bundle: Path, pictures: PictureHost, auth: AuthSettings | None = None) -> FlaskClient:
    settings = Settings(
        label_studio=LabelStudioSettings(url=pictures.url),
        model=ModelSettings(name=str(bundle)),
        auth=auth or AuthSettings(),
    )
    return create_app(settings).test_client()


@pytest.fixture(scope="module")
def disc_client(disc_bundle: Path, pictures: PictureHost) -> FlaskClient:
    return client_of(disc_bundle, pictures)


@pytest.fixture(scope="module")
def tiny_client(tiny_bundle: Path, pictures: PictureHost) -> FlaskClient:
    return client_of(tiny_bundle, pictures)


@pytest.fixture(scope="module")
def prefixed_client(disc_bundle: Path, pictures: PictureHost) -> FlaskClient:
    """As the backend was that the recordings under /pre/ were made with."""
    auth = AuthSettings(basic_auth_user="user", basic_auth_pass="pass", url_secret="pre")
    return client_of(disc_bundle, pictures, auth)


def replay(client: FlaskClient, request: dict[str, Any]) -> Any:
    headers = {k: v for k, v in request["headers"].items() if k not in ("Content-Length", "Host")}
    if "Authorization" in headers:  # redacted in the recording
        headers["Authorization"] = "Basic " + base64.b64encode(b"user:pass").decode()
    sent = None if request["body"] is None else json.dumps(request["body"])
    response = client.open(request["path"], method=request["method"], headers=headers, data=sent)
    if response.headers.get("Content-Encoding") == "gzip":  # Label Studio takes it
        response.set_data(gzip.decompress(response.data))
    return response


@pytest.mark.parametrize("recording", shared_params("label_studio/recorded/*.json"))
def test_every_recorded_request_is_answered(
    shared: Path,
    recording: Path,
    disc_client: FlaskClient,
    prefixed_client: FlaskClient,
    pictures: PictureHost,
) -> None:
    request = recorded(shared, recording.stem, host=pictures.url)
    client = prefixed_client if request["path"].startswith("/pre/") else disc_client
    response = replay(client, request)
    training = request["path"] == "/webhook" and request["body"]["action"] == "START_TRAINING"
    assert response.status_code == (503 if training else 200), response.json
    if request["path"] != "/predict":
        return
    results = response.json["results"]
    assert len(results) == len(request["body"]["tasks"])
    drawn = (request["body"]["params"]["context"] or {}).get("result")
    for result in results:
        assert result["model_version"] == response.json["model_version"]
        assert isinstance(result["score"], float)
        assert bool(result["result"]) is bool(drawn)
        for region in result["result"]:
            prompt = drawn[-1]
            for key in ("original_width", "original_height", "to_name"):
                assert region[key] == prompt[key]
            assert region.get("item_index") == prompt.get("item_index")
            if region["value"].get("format") == "rle":
                assert mask_of(region).any()


def test_the_mask_is_where_each_recorded_click_was(
    shared: Path, disc_client: FlaskClient, pictures: PictureHost
) -> None:
    request = recorded(shared, "ui_keypoint_first", host=pictures.url)
    (result,) = replay(disc_client, request).json["results"]
    rows, columns = np.nonzero(mask_of(result["result"][0]))
    assert (columns.mean(), rows.mean()) == pytest.approx((448.2, 144.1), abs=3)


@pytest.mark.slow  # the export takes most of it
@pytest.mark.parametrize("recording", shared_params("label_studio/recorded/ui_*.json"))
def test_a_really_exported_network_answers_them_too(
    shared: Path, recording: Path, tiny_client: FlaskClient, pictures: PictureHost
) -> None:
    request = recorded(shared, recording.stem, host=pictures.url)
    response = replay(tiny_client, request)
    # Random weights may find nothing at all, which is the one thing that may be refused.
    if response.status_code == 422:
        assert response.json["code"] == "prompt_error"
        assert "finds nothing" in response.json["error"]
    else:
        (result,) = response.json["results"]
        assert bool(result["result"]) is bool(request["body"]["params"]["context"]["result"])
