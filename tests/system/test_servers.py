"""The real programs that the other tests lean on start, answer and end."""

from __future__ import annotations

import json
import os
import urllib.request

import pytest

from tests import parts, servers


def test_redis_answers(redis_server):
    import redis

    with redis.Redis.from_url(redis_server) as connection:
        assert connection.ping()


def test_redis_is_gone_after_its_block(tmp_path):
    import redis

    with servers.running_redis(parts.find_redis_server(), tmp_path) as url:
        pass
    with redis.Redis.from_url(url) as connection, pytest.raises(redis.ConnectionError):
        connection.ping()


def test_chromium_draws_a_page(page):
    page.set_content("<h1>Hello</h1>")
    assert page.inner_text("h1") == "Hello"


@pytest.mark.slow
def test_label_studio_exchanges_a_personal_access_token(label_studio):
    request = urllib.request.Request(
        f"{label_studio.url}/api/token/refresh",
        json.dumps({"refresh": label_studio.personal_access_token}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["access"]


def test_an_absent_part_skips_the_test_of_a_user(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="nothing there"):
        parts.require(None, "nothing there")


def test_an_absent_part_fails_the_test_where_everything_must_be_there(monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="nothing there"):
        parts.require(None, "nothing there")


def test_no_setting_of_the_person_who_runs_the_tests_reaches_them():
    assert not [name for name in os.environ if name.startswith(("LABEL_STUDIO_", "BASIC_AUTH_"))]
