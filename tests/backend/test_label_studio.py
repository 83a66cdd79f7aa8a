from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from backend.access_token import is_personal
from backend.label_studio import LabelStudioClient, LabelStudioSettings
from backend.safe_http import Deadline, HttpAnswer
from edgesam_core.errors import EdgeSamError, ImageError, UpstreamError, UpstreamTimeout
from tests.backend.hosts import FakeLabelStudio, Host, jwt, running
from tests.servers import free_port


@pytest.fixture
def label_studio() -> Iterator[FakeLabelStudio]:
    with running(FakeLabelStudio()) as host:
        assert isinstance(host, FakeLabelStudio)
        host.files["/api/current-user/whoami"] = lambda request: request.reply_json(200, {"id": 1})
        yield host


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def client(host: FakeLabelStudio, api_key: str | None, clock: Clock | None = None):
    settings = LabelStudioSettings(url=host.url, api_key=api_key, timeout_s=5)
    return LabelStudioClient(settings, clock=clock or time.monotonic)


def ask(who: LabelStudioClient) -> HttpAnswer:
    url = who.address.resolve("/api/current-user/whoami")
    return who.send(url, deadline=Deadline(5), max_bytes=10**6)


# --- settings ---


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "ftp://host", "http://", "http://host/?a=1", "http://me:secret@host"],
)
def test_settings_refuse_an_address_that_cannot_be_asked(url: str) -> None:
    with pytest.raises(ValueError, match="LABEL_STUDIO_URL") as caught:
        LabelStudioSettings(url=url)
    assert "secret" not in str(caught.value)


def test_settings_never_show_the_token() -> None:
    assert "s3cret" not in repr(LabelStudioSettings(api_key="s3cret"))


def test_settings_take_blanks_and_a_last_slash_off() -> None:
    settings = LabelStudioSettings(url="http://host/label-studio/", api_key=" ")
    assert settings.url == "http://host/label-studio"
    assert settings.api_key is None


# --- tokens ---


def test_kinds_of_token_are_told_apart_by_shape() -> None:
    assert is_personal(jwt(exp=1))
    assert not is_personal("0123456789abcdef0123456789abcdef01234567")


def test_legacy_token_is_sent_as_it_is(label_studio: FakeLabelStudio) -> None:
    assert ask(client(label_studio, label_studio.legacy)).status == 200
    assert label_studio.refreshes == 0


def test_personal_access_token_is_exchanged_once_and_never_sent_itself(
    label_studio: FakeLabelStudio,
) -> None:
    who = client(label_studio, label_studio.personal)
    assert [ask(who).status for _ in range(3)] == [200, 200, 200]
    assert label_studio.refreshes == 1
    for _, headers in label_studio.seen:
        assert label_studio.personal not in headers.get("Authorization", "")


def test_access_token_is_renewed_before_it_ends(label_studio: FakeLabelStudio) -> None:
    clock = Clock()
    who = client(label_studio, label_studio.personal, clock)
    first = who.authorization()
    clock.now += 239
    assert who.authorization() == first
    clock.now += 2  # 241 s of its 300 s
    assert who.authorization() != first
    assert label_studio.refreshes == 2


def test_refused_access_token_is_exchanged_once_more(label_studio: FakeLabelStudio) -> None:
    who = client(label_studio, label_studio.personal)
    ask(who)
    label_studio.forget_access_tokens()
    assert ask(who).status == 200
    assert label_studio.refreshes == 2


def test_threads_that_need_a_token_share_one_exchange(label_studio: FakeLabelStudio) -> None:
    label_studio.refresh_takes_s = 0.2
    who = client(label_studio, label_studio.personal)
    together = threading.Barrier(8)

    def authorized(_: int) -> dict[str, str]:
        together.wait()
        return who.authorization()

    with ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(authorized, range(8)))
    assert label_studio.refreshes == 1
    assert all(header == headers[0] for header in headers)


def test_threads_share_the_failure_of_one_exchange_and_the_next_request_tries_again(
    label_studio: FakeLabelStudio,
) -> None:
    label_studio.refresh_takes_s, label_studio.revoked = 0.3, True
    who = client(label_studio, label_studio.personal)
    together = threading.Barrier(4)

    def refused(_: int) -> str:
        together.wait()
        with pytest.raises(UpstreamError) as caught:
            who.authorization()
        return caught.value.sentence

    with ThreadPoolExecutor(4) as pool:
        sentences = set(pool.map(refused, range(4)))
    assert label_studio.refreshes == 1
    assert len(sentences) == 1
    label_studio.revoked = False
    assert who.authorization()


def sentence_for(host: FakeLabelStudio, api_key: str | None) -> str:
    with pytest.raises(EdgeSamError) as caught:
        client(host, api_key).get_json("/api/current-user/whoami")
    sentence = caught.value.sentence
    for secret in (host.legacy, host.personal, api_key or "-none-", "eyJ"):
        assert secret not in sentence
        assert secret not in caught.value.detail
    return sentence


def test_missing_token_says_where_to_get_one(label_studio: FakeLabelStudio) -> None:
    sentence = sentence_for(label_studio, None)
    assert "asks for a token" in sentence
    assert "Account & Settings > Personal Access Token" in sentence
    assert "LABEL_STUDIO_API_KEY" in sentence


def test_disabled_legacy_token_says_so(label_studio: FakeLabelStudio) -> None:
    label_studio.legacy_enabled = False
    assert "no longer accepts legacy tokens" in sentence_for(label_studio, label_studio.legacy)


def test_wrong_legacy_token_says_so(label_studio: FakeLabelStudio) -> None:
    assert "refused the legacy token" in sentence_for(label_studio, "f" * 40)


def test_revoked_personal_token_says_so(label_studio: FakeLabelStudio) -> None:
    label_studio.revoked = True
    assert "was revoked" in sentence_for(label_studio, label_studio.personal)


def test_expired_personal_token_says_so(label_studio: FakeLabelStudio) -> None:
    assert "has expired" in sentence_for(label_studio, jwt(exp=time.time() - 10))


def test_personal_token_of_another_label_studio_says_so(label_studio: FakeLabelStudio) -> None:
    assert "belongs to another" in sentence_for(label_studio, jwt(exp=time.time() + 1000))


def test_access_token_refused_at_once_is_not_exchanged_for_ever(
    label_studio: FakeLabelStudio,
) -> None:
    label_studio.files["/api/current-user/whoami"] = lambda request: request.reply_json(401, {})
    assert "API Tokens Settings" in sentence_for(label_studio, label_studio.personal)
    assert label_studio.refreshes == 2


# --- refusals that are not about tokens ---


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (403, b"{}", UpstreamError, "may not see this"),
        (403, b"enable it with LOCAL_FILES_SERVING_ENABLED", UpstreamError, "ENABLED=true"),
        (404, b"{}", ImageError, "has no such file"),
        (424, b"{}", UpstreamError, "cloud storage"),
        (500, b"Traceback: /srv/secret", UpstreamError, "an error of its own (500)"),
        (418, b"", UpstreamError, "status 418"),
    ],
)
def test_each_refusal_has_its_sentence(
    label_studio: FakeLabelStudio, status: int, body: bytes, kind: type[Exception], words: str
) -> None:
    label_studio.files["/x"] = lambda request: request.reply(status, body)
    with pytest.raises(kind) as caught:
        client(label_studio, label_studio.legacy).get_json("/x")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_redirect_to_another_address_says_to_set_the_last_one(
    label_studio: FakeLabelStudio,
) -> None:
    label_studio.files["/x"] = lambda request: request.reply(301, Location="https://ls/x")
    with pytest.raises(UpstreamError, match="address that the browser shows in the end"):
        client(label_studio, label_studio.legacy).get_json("/x")


def test_redirect_to_the_login_page_is_about_the_token(label_studio: FakeLabelStudio) -> None:
    label_studio.files["/x"] = lambda request: request.reply(302, Location="/user/login/?next=/x")
    with pytest.raises(UpstreamError, match="refused the legacy token"):
        client(label_studio, label_studio.legacy).get_json("/x")


def test_something_else_at_the_address_says_so(label_studio: FakeLabelStudio) -> None:
    label_studio.files["/x"] = lambda request: request.reply(200, b"<html>")
    with pytest.raises(UpstreamError, match="is not Label Studio"):
        client(label_studio, label_studio.legacy).get_json("/x")


def test_dead_label_studio_says_so_and_speaks_of_containers() -> None:
    who = LabelStudioClient(LabelStudioSettings(url=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(UpstreamError, match="Inside a container, localhost is the container"):
        who.get_json("/health/")


def test_unknown_host_says_so() -> None:
    who = LabelStudioClient(LabelStudioSettings(url="http://label-studio.invalid"))
    with pytest.raises(UpstreamError, match=r"label-studio\.invalid is not known"):
        who.get_json("/health/")


def test_slow_label_studio_is_a_timeout() -> None:
    with running(Host()) as host:
        host.answers["/x"] = lambda request: time.sleep(1)
        who = LabelStudioClient(LabelStudioSettings(url=host.url, timeout_s=0.2))
        with pytest.raises(UpstreamTimeout, match=r"longer than 0\.2 s"):
            who.get_json("/x")


def test_nothing_of_a_token_reaches_the_log(
    label_studio: FakeLabelStudio, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask(client(label_studio, label_studio.personal))
    ask(client(label_studio, label_studio.legacy))
    assert "eyJ" not in caplog.text
    assert label_studio.legacy not in caplog.text
