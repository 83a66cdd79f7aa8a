from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from flask import Flask, Response, request
from flask.testing import FlaskClient

from backend.compressed import WORTH_IT_BYTES, compress
from tests.backend.conftest import body, keypoint, picture_uri

LARGE = json.dumps(list(range(WORTH_IT_BYTES)))


@pytest.fixture
def tiny() -> FlaskClient:
    """An application that answers with as many bytes as asked for, and with an error."""
    app = Flask("tiny", static_folder=None)

    @app.get("/<int:count>/<int:status>")
    def answer(count: int, status: int) -> Response:
        return Response(LARGE[:count], status, mimetype="application/json")

    app.after_request(lambda response: compress(request, response))
    return app.test_client()


@pytest.mark.parametrize(
    ("accepts", "is_compressed"),
    [
        pytest.param("gzip, deflate", True, id="Label Studio's"),
        pytest.param("*", True, id="anything"),
        pytest.param("br;q=1.0, gzip;q=0.5", True, id="something else rather"),
        pytest.param("gzip;q=0", False, id="not gzip"),
        pytest.param("identity", False, id="as it is"),
        pytest.param("", False, id="an empty header"),
        pytest.param(None, False, id="no header"),
    ],
)
def test_a_large_answer_is_compressed_where_the_client_takes_it(
    tiny: FlaskClient, accepts: str | None, is_compressed: bool
) -> None:
    headers = {} if accepts is None else {"Accept-Encoding": accepts}
    response = tiny.get(f"/{WORTH_IT_BYTES}/200", headers=headers)
    assert response.headers["Vary"] == "Accept-Encoding"
    assert int(response.headers["Content-Length"]) == len(response.data)
    assert response.headers.get("Content-Encoding") == ("gzip" if is_compressed else None)
    text = gzip.decompress(response.data) if is_compressed else response.data
    assert text.decode() == LARGE[:WORTH_IT_BYTES]


def test_a_small_answer_stays_as_it_is(tiny: FlaskClient) -> None:
    headers = {"Accept-Encoding": "gzip"}
    response = tiny.get(f"/{WORTH_IT_BYTES - 1}/200", headers=headers)
    assert "Content-Encoding" not in response.headers
    assert "Vary" not in response.headers


def test_a_large_error_is_compressed_too_and_keeps_its_status(tiny: FlaskClient) -> None:
    response = tiny.get(f"/{len(LARGE)}/422", headers={"Accept-Encoding": "gzip"})
    assert response.status_code == 422
    assert gzip.decompress(response.data).decode() == LARGE


def test_head_says_what_get_would(tiny: FlaskClient) -> None:
    headers = {"Accept-Encoding": "gzip"}
    got, head = (tiny.open("/5000/200", method=m, headers=headers) for m in ("GET", "HEAD"))
    assert head.data == b""
    for name in ("Content-Length", "Content-Encoding", "Vary", "Content-Type"):
        assert head.headers[name] == got.headers[name]


def test_a_click_is_answered_compressed_and_says_the_same(client: FlaskClient) -> None:
    sent: Any = body(keypoint(50, 50), image=picture_uri(4000, 3000))
    for region in sent["params"]["context"]["result"]:
        region.update(original_width=4000, original_height=3000)
    plain = client.post("/predict", json=sent)
    packed = client.post("/predict", json=sent, headers={"Accept-Encoding": "gzip, deflate"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.data) < len(plain.data) / 2
    regions = [
        json.loads(text)["results"][0]["result"][0]
        for text in (plain.data, gzip.decompress(packed.data))
    ]
    assert regions[0]["value"] == regions[1]["value"]
    assert len(regions[0]["value"]["rle"]) > 1000


def test_an_error_without_a_view_is_answered_whoever_asks(client: FlaskClient) -> None:
    response = client.get("/nothing", headers={"Accept-Encoding": "gzip"})
    assert response.status_code == 404
    assert response.json["code"] == "not_found"
