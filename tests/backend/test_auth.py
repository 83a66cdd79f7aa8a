from __future__ import annotations

import base64
from typing import Any

import pytest

from backend.auth import AuthSettings
from tests.backend.conftest import MakeClient

SECRET = "a-secret-path"
BASIC = AuthSettings(basic_auth_user="label", basic_auth_pass="stüdio")


def basic(user: str, password: str) -> dict[str, str]:
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", "/metrics"), ("POST", "/setup"), ("POST", "/predict"),
        ("POST", "/webhook"), ("POST", "/train"), ("GET", "/versions"), ("POST", "/versions"),
        ("POST", "/validate"), ("POST", "/delete"), ("POST", "/duplicate_model"),
        ("GET", "/is_training"), ("GET", "/job_status"), ("GET", "/train"), ("GET", "/train/3-x"),
        ("DELETE", "/train/3-x"), ("POST", "/versions/x/promote"), ("POST", "/rollback"),
    ],
)  # fmt: skip
def test_basic_auth_guards_everything_but_health_and_ready(
    make_client: MakeClient, method: str, path: str
) -> None:
    client = make_client(auth=BASIC)
    options: dict[str, Any] = {"json": {}} if method == "POST" else {}
    refused = client.open(path, method=method, **options)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic")
    assert refused.json["error"].endswith(".")
    admitted = client.open(path, method=method, headers=basic("label", "stüdio"), **options)
    assert admitted.status_code != 401


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(basic("label", "wrong"), id="wrong password"),
        pytest.param(basic("other", "stüdio"), id="wrong user"),
        pytest.param(basic("", ""), id="empty"),
        pytest.param({"Authorization": "Bearer stüdio"}, id="bearer"),
        pytest.param({"Authorization": "Basic !!!"}, id="no base64"),
        pytest.param({"Authorization": "Digest username=label"}, id="digest"),
    ],
)
def test_other_credentials_are_refused(make_client: MakeClient, headers: dict[str, str]) -> None:
    assert make_client(auth=BASIC).get("/versions", headers=headers).status_code == 401


def test_health_and_ready_need_no_credentials(make_client: MakeClient) -> None:
    client = make_client(auth=BASIC)
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code in (200, 503)


def test_a_secret_puts_every_route_under_its_path(make_client: MakeClient) -> None:
    client = make_client(auth=AuthSettings(url_secret=SECRET))
    for path in ("/health", "/ready", "/setup", "/metrics", "/", "/wrong-secret/health"):
        assert client.get(path).status_code == 404
    assert client.get(f"/{SECRET}/health").status_code == 200
    assert client.get(f"/{SECRET}/").status_code == 200
    assert client.post(f"/{SECRET}/setup", json={}).json["model_version"]
    assert client.post(f"/{SECRET}/webhook", json={"action": "X"}).status_code == 200


def test_a_secret_never_stands_in_an_answer_or_the_log(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "backend")
    client = make_client(auth=AuthSettings(url_secret=SECRET))
    text = client.get(f"/{SECRET}/nowhere").text + client.get(f"/{SECRET}/predict").text
    assert SECRET not in text + caplog.text


def test_with_both_an_ordinary_webhook_needs_the_secret_path_alone(
    make_client: MakeClient,
) -> None:
    auth = AuthSettings(basic_auth_user="u", basic_auth_pass="p", url_secret=SECRET)
    client = make_client(auth=auth)
    ordinary, training = {"action": "ANNOTATION_CREATED"}, {"action": "START_TRAINING"}
    assert client.post(f"/{SECRET}/webhook", json=ordinary).status_code == 200
    assert client.post(f"/{SECRET}/webhook", json=training).status_code == 401
    asked = client.post(f"/{SECRET}/webhook", json=training, headers=basic("u", "p"))
    assert asked.status_code == 400, "let in, and no project is named"
    assert client.post(f"/{SECRET}/predict", json={}).status_code == 401
    assert client.post("/webhook", json=ordinary, headers=basic("u", "p")).status_code == 404


GUARDED = (
    ("DELETE", "/train/3-20200101T000000000000"),
    ("POST", "/versions/0123456789ab/promote"),
    ("POST", "/rollback"),
)


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example",
     "10.0.0.7:9090", "[::1", "evil@localhost:x"],
)  # fmt: skip
def test_a_page_whose_own_name_leads_to_loopback_changes_nothing(
    make_client: MakeClient, method: str, path: str, host: str
) -> None:
    body: Any = {"json": {"project": 3}} if method == "POST" else {}
    headers = {"Host": host}
    refused = make_client().open(path, method=method, headers=headers, **body)
    assert (refused.status_code, refused.json["code"]) == (403, "guarded")
    assert "own name" in refused.json["error"]
    headers |= basic("label", "stüdio")
    admitted = make_client(auth=BASIC).open(path, method=method, headers=headers, **body)
    assert admitted.status_code != 403, "a browser has no password for that name"


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9090", "127.0.1.1", "[::1]:9090", "LOCALHOST", "edgesam.local:9090"]
)
def test_under_its_own_name_the_server_answers_without_a_password(
    make_client: MakeClient, host: str
) -> None:
    client = make_client(auth=AuthSettings(host="EdgeSAM.local"))
    answer = client.post("/rollback", json={"project": 3}, headers={"Host": host})
    assert answer.status_code != 403


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"basic_auth_user": "u"}, "basic_auth_pass"),
        ({"basic_auth_pass": "p"}, "basic_auth_user"),
        ({"url_secret": "a" * 201}, "url_secret"),
        ({"url_secret": "with/slash/in/it"}, "url_secret"),
        ({"url_secret": "with<int:x>converter"}, "url_secret"),
    ],
)
def test_half_a_pair_or_an_impossible_path_is_refused(given: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AuthSettings(**given)


def test_credentials_are_not_shown() -> None:
    shown = repr(AuthSettings(basic_auth_user="u", basic_auth_pass="pass", url_secret=SECRET))
    assert "pass'" not in shown
    assert SECRET not in shown
