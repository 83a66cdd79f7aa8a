from __future__ import annotations

import base64
import gzip
import hashlib
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from backend import safe_http
from backend.directory_store import DirectoryStore
from backend.image_address import read_data_uri, without_signature
from backend.images import ImageLoader, ImageSettings
from backend.label_studio import LabelStudioClient, LabelStudioSettings
from backend.safe_http import is_public
from backend.store import NO_STORE
from edgesam_core.errors import (
    EdgeSamError,
    HostRefused,
    ImageError,
    ImageTooLarge,
    UpstreamError,
    UpstreamTimeout,
)
from tests import parts
from tests.backend.hosts import FakeLabelStudio, Host, Request, running
from tests.backend.workers import wait_until

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
SHA256 = hashlib.sha256(PICTURE).hexdigest()


def picture(request: Request) -> None:
    request.reply(200, PICTURE, Content_Type="image/png")


def redirect(location: str, status: int = 302) -> Callable[[Request], None]:
    return lambda request: request.reply(status, Location=location)


class Clock:
    def __init__(self) -> None:
        self.now = 1.8e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def start() -> Iterator[Callable[..., Host]]:
    with ExitStack() as stack:
        yield lambda host=None: stack.enter_context(running(host or Host()))


@pytest.fixture
def label_studio(start: Callable[..., Host]) -> FakeLabelStudio:
    host = start(FakeLabelStudio())
    assert isinstance(host, FakeLabelStudio)
    host.files["/data/upload/1/cat.png"] = picture
    return host


@pytest.fixture
def elsewhere(start: Callable[..., Host]) -> Host:
    """A host that is not Label Studio and, being on loopback, not a public one."""
    host = start()
    host.answers["/cat.png"] = picture
    return host


def loader(
    label_studio: FakeLabelStudio | str = "http://127.0.0.1:1",
    *,
    api_key: str | None = "",
    clock: Clock | None = None,
    cache_dir: Path | None = None,
    **settings: Any,
) -> ImageLoader:
    if isinstance(label_studio, FakeLabelStudio):
        url, own_key = label_studio.url, label_studio.personal
    else:
        url, own_key = label_studio, None
    where = LabelStudioSettings(url, own_key if api_key == "" else api_key)
    kept, shared = (
        DirectoryStore(cache_dir / name, 10**7) if cache_dir else NO_STORE
        for name in ("images", "store")
    )
    return ImageLoader(
        ImageSettings(**{"timeout_s": 10, **settings}),
        LabelStudioClient(where),
        kept=kept,
        shared=shared,
        clock=clock or time.time,
    )


def tokens_seen(host: Host) -> list[str]:
    return [headers["Authorization"] for _, headers in host.seen if "Authorization" in headers]


# --- what a task may call an image ---


def test_upload_is_fetched_with_the_token(label_studio: FakeLabelStudio) -> None:
    image = loader(label_studio).fetch("/data/upload/1/cat.png")
    assert (image.data, image.sha256) == (PICTURE, SHA256)


def test_local_file_keeps_its_query(label_studio: FakeLabelStudio) -> None:
    asked: list[str] = []

    def local_file(request: Request) -> None:
        asked.append(request.query("d"))
        picture(request)

    label_studio.files["/data/local-files/"] = local_file
    loader(label_studio).fetch("/data/local-files/?d=cats/one%20cat%3F.png")
    assert asked == ["cats/one cat?.png"]


@pytest.mark.parametrize("in_task", ["/data/upload/1/cat.png", "/ls/data/upload/1/cat.png"])
def test_label_studio_under_a_path_prefix(start: Callable[..., Host], in_task: str) -> None:
    host = start(FakeLabelStudio(prefix="/ls"))
    assert isinstance(host, FakeLabelStudio)
    host.files["/data/upload/1/cat.png"] = picture
    assert loader(host).fetch(in_task).data == PICTURE
    whole = host.url.removesuffix("/ls") + in_task
    assert loader(host).fetch(whole).data == PICTURE


def test_localhost_in_a_task_means_label_studio(label_studio: FakeLabelStudio) -> None:
    url = "http://localhost:8080/data/upload/1/cat.png"  # as a local storage writes it
    assert loader(label_studio).fetch(url).data == PICTURE


@pytest.mark.parametrize("uri", ["s3://bucket/a b/cat.png", "gs://b/c.png", "azure-blob://b/c.png"])
def test_cloud_file_is_resolved_for_its_task_and_its_storage_gets_no_token(
    label_studio: FakeLabelStudio, elsewhere: Host, uri: str
) -> None:
    def presign(request: Request) -> None:
        assert base64.urlsafe_b64decode(request.query("fileuri")).decode() == uri
        redirect(f"{elsewhere.url}/cat.png?X-Amz-Signature=abc", 303)(request)

    label_studio.files["/tasks/7/presign/"] = presign
    images = loader(label_studio, allowed_hosts=(f"127.0.0.1:{elsewhere.port}",))
    assert images.fetch(uri, task_id=7).data == PICTURE
    assert elsewhere.paths() == ["/cat.png"]
    assert tokens_seen(elsewhere) == []


def test_buckets_of_one_name_in_two_projects_are_not_mixed_up(
    label_studio: FakeLabelStudio, tmp_path: Path
) -> None:
    label_studio.files["/tasks/7/presign/"] = lambda request: request.reply(200, b"first")
    label_studio.files["/tasks/8/presign/"] = lambda request: request.reply(200, b"second")
    images = loader(label_studio, cache_dir=tmp_path)
    for _ in range(2):
        assert images.fetch("s3://bucket/cat.png", task_id=7).data == b"first"
        assert images.fetch("s3://bucket/cat.png", task_id=8).data == b"second"


def test_cloud_file_that_label_studio_passes_on_itself(label_studio: FakeLabelStudio) -> None:
    label_studio.files["/tasks/7/presign/"] = picture
    assert loader(label_studio).fetch("s3://bucket/cat.png", task_id=7).data == PICTURE


def test_cloud_file_that_is_handed_over_as_a_data_uri(label_studio: FakeLabelStudio) -> None:
    label_studio.files["/tasks/7/presign/"] = redirect("data:image/png;base64,aGVsbG8=", 303)
    assert loader(label_studio).fetch("gs://bucket/cat.png", task_id=7).data == b"hello"


def test_cloud_file_without_a_task_says_so(label_studio: FakeLabelStudio) -> None:
    with pytest.raises(ImageError, match="Send the task's id"):
        loader(label_studio).fetch("s3://bucket/cat.png")


def test_cloud_file_of_no_storage_says_so(label_studio: FakeLabelStudio) -> None:
    with pytest.raises(ImageError, match="source storage that holds it"):
        loader(label_studio).fetch("s3://bucket/cat.png", task_id=7)


def test_plain_address_with_blanks_and_letters_beyond_ascii(elsewhere: Host) -> None:
    elsewhere.answers[quote("/große katze.png")] = picture
    images = loader(allowed_hosts=("127.0.0.1",))
    assert images.fetch(f" {elsewhere.url}/große katze.png#top ").data == PICTURE
    assert tokens_seen(elsewhere) == []


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64," + base64.b64encode(PICTURE).decode(),
        "data:image/png;base64," + base64.b64encode(PICTURE).decode().rstrip("="),
        "data:image/png;base64," + quote(base64.b64encode(PICTURE).decode(), safe=""),
        "data:image/png;name=cat.png;BASE64," + base64.encodebytes(PICTURE).decode(),
        "DATA:image/png," + quote(PICTURE),
        "data:," + quote(PICTURE),
    ],
    ids=["base64", "no padding", "base64 escaped", "line breaks", "percent", "no type"],
)
def test_data_uri_in_each_of_its_forms(uri: str, tmp_path: Path) -> None:
    images = loader(cache_dir=tmp_path)
    assert images.fetch(uri).data == PICTURE
    assert images.key(uri) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["data:image/png;base64,", "data:image/png", "data:;base64,a$b"])
def test_damaged_data_uri_says_so(uri: str) -> None:
    with pytest.raises(ImageError, match=r"\(a data URI\) is (empty|damaged)"):
        loader().fetch(uri)


@pytest.mark.parametrize(
    "uri", ["data:image/png;base64," + "A" * 1400, "data:," + "%41" * 1001, "data:," + "%41" * 9999]
)
def test_data_uri_over_the_limit_is_refused(uri: str) -> None:
    with pytest.raises(ImageTooLarge, match=r"larger than 0\.001 MB"):
        read_data_uri(uri, 1000)


def test_data_uri_within_the_limit_is_read() -> None:
    assert len(read_data_uri("data:image/png;base64," + "AAAA" * 333, 1000)) == 999


@pytest.mark.parametrize(
    "uri",
    ["", "cat.png", "C:\\cat.png", "file:///etc/passwd", "ftp://h/cat.png", "http://", "http:///x",
     "redis://h/1", "../data/x", "http://[::1/x"],
)  # fmt: skip
def test_what_is_no_address_says_so(uri: str) -> None:
    with pytest.raises(ImageError) as caught:
        loader().fetch(uri)
    assert caught.value.status == 422
    assert "passwd" not in caught.value.sentence


# --- where the token may go ---


def test_redirect_from_label_studio_to_another_host_does_not_carry_the_token(
    label_studio: FakeLabelStudio, elsewhere: Host
) -> None:
    label_studio.files["/data/upload/1/away.png"] = redirect(f"{elsewhere.url}/cat.png")
    images = loader(label_studio, allowed_hosts=("127.0.0.1",))
    assert images.fetch("/data/upload/1/away.png").data == PICTURE
    assert len(tokens_seen(label_studio)) == 1
    assert tokens_seen(elsewhere) == []


def test_token_is_not_sent_to_another_application_on_label_studios_host(
    start: Callable[..., Host],
) -> None:
    host = start(FakeLabelStudio(prefix="/ls"))
    assert isinstance(host, FakeLabelStudio)
    with pytest.raises(ImageError):
        loader(host).fetch(host.url.removesuffix("/ls") + "/other/cat.png")
    assert tokens_seen(host) == []


def test_foreign_host_that_wants_a_login_gets_no_token_and_says_so(elsewhere: Host) -> None:
    elsewhere.answers["/data/upload/1/cat.png"] = lambda request: request.reply(401)
    images = loader(api_key="s3cret", allowed_hosts=("127.0.0.1",))
    with pytest.raises(UpstreamError, match="set LABEL_STUDIO_URL to it"):
        images.fetch(f"{elsewhere.url}/data/upload/1/cat.png")
    assert tokens_seen(elsewhere) == []


def test_password_in_an_address_is_not_sent_or_shown(elsewhere: Host) -> None:
    images = loader(allowed_hosts=("127.0.0.1",))
    url = elsewhere.url.replace("http://", "http://me:s3cret@") + "/nothing.png"
    with pytest.raises(ImageError) as caught:
        images.fetch(url)
    assert "s3cret" not in caught.value.sentence + caught.value.detail
    assert tokens_seen(elsewhere) == []


def test_missing_token_says_where_to_get_one(label_studio: FakeLabelStudio) -> None:
    with pytest.raises(UpstreamError, match="Personal Access Token"):
        loader(label_studio, api_key=None).fetch("/data/upload/1/cat.png")


# --- private hosts ---


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433", "0x7f000001", "[::1]",
     "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "169.254.169.254", "10.0.0.1", "[fe80::1]"],
)  # fmt: skip
def test_private_host_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(HostRefused, match="EDGESAM_IMAGE_HOSTS") as caught:
        loader().fetch(f"http://{host}:9/cat.png")
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::",
     "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1", "::ffff:10.0.0.1",
     "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b:1::1", "2002:7f00:1::",
     "2001:0:5ef5:79fd::1"],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


class Names:
    """Stands in for the name service alone: connections are real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        # name -> the addresses of its first look-up, its second, ...; the last one stays
        self.asked: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, **options: Any) -> object:
        if host not in self.answers:
            return self._real(host, port, **options)
        self.asked.append(host)
        found = self.answers[host]
        addresses = found.pop(0) if len(found) > 1 else found[0]
        return [entry for ip in addresses for entry in self._real(ip, port, **options)]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


def test_name_that_leads_to_loopback_is_refused(elsewhere: Host, names: Names) -> None:
    names.answers["cats.test"] = [["127.0.0.1"]]
    with pytest.raises(HostRefused, match=r"private host \(cats\.test\)"):
        loader().fetch(f"http://cats.test:{elsewhere.port}/cat.png")
    assert elsewhere.seen == []


def test_one_private_address_among_public_ones_is_refused(names: Names) -> None:
    names.answers["cats.test"] = [["93.184.216.34", "10.0.0.1"]]
    with pytest.raises(HostRefused):
        loader().fetch("http://cats.test/cat.png")


def test_connection_goes_to_the_checked_address_though_the_name_moves_on(
    start: Callable[..., Host], names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, private = start(Host("127.0.0.2")), start()
    monkeypatch.setattr(safe_http, "is_public", lambda address: address == "127.0.0.2")
    public.answers["/cat.png"] = picture
    names.answers["cats.test"] = [["127.0.0.2"], ["127.0.0.1"]]
    assert loader().fetch(f"http://cats.test:{public.port}/cat.png").data == PICTURE
    assert names.asked == ["cats.test"]
    assert public.seen[0][1]["Host"] == f"cats.test:{public.port}"
    assert private.seen == []


def test_second_address_is_tried_when_the_first_is_dead(elsewhere: Host, names: Names) -> None:
    names.answers["cats.test"] = [["127.0.0.3", "127.0.0.1"]]
    images = loader(allowed_hosts=("cats.test",))
    assert images.fetch(f"http://cats.test:{elsewhere.port}/cat.png").data == PICTURE


@pytest.mark.parametrize("is_with_port", [False, True])
def test_named_host_may_be_private(elsewhere: Host, names: Names, is_with_port: bool) -> None:
    names.answers["minio"] = [["127.0.0.1"]]
    named = f"minio:{elsewhere.port}" if is_with_port else "MinIO"
    images = loader(allowed_hosts=(named,))
    assert images.fetch(f"http://minio:{elsewhere.port}/cat.png").data == PICTURE


def test_host_named_with_another_port_stays_refused(elsewhere: Host) -> None:
    with pytest.raises(HostRefused):
        loader(allowed_hosts=("127.0.0.1:1",)).fetch(f"{elsewhere.url}/cat.png")


def test_redirect_into_the_private_network_is_refused(
    start: Callable[..., Host], elsewhere: Host, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = start(Host("127.0.0.2"))
    monkeypatch.setattr(safe_http, "is_public", lambda address: address == "127.0.0.2")
    public.answers["/cat.png"] = redirect(f"{elsewhere.url}/cat.png")
    with pytest.raises(HostRefused):
        loader().fetch(f"{public.url}/cat.png")
    assert elsewhere.seen == []


def test_redirect_from_label_studio_into_the_private_network_is_refused(
    label_studio: FakeLabelStudio, elsewhere: Host
) -> None:
    label_studio.files["/data/upload/1/away.png"] = redirect(f"{elsewhere.url}/cat.png")
    with pytest.raises(HostRefused):
        loader(label_studio).fetch("/data/upload/1/away.png")
    assert elsewhere.seen == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://127.0.0.1/", "//", "http://"])
def test_redirect_to_what_is_not_http_is_refused(elsewhere: Host, location: str) -> None:
    elsewhere.answers["/x"] = redirect(location)
    with pytest.raises(EdgeSamError):
        loader(allowed_hosts=("127.0.0.1",)).fetch(f"{elsewhere.url}/x")


def test_no_proxy_and_no_netrc_of_the_environment_is_used(
    elsewhere: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert loader(allowed_hosts=("127.0.0.1",)).fetch(f"{elsewhere.url}/cat.png").data == PICTURE
    assert tokens_seen(elsewhere) == []


# --- TLS ---


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) for the name cats.test, its own authority."""
    openssl = shutil.which("openssl")
    if not openssl:
        parts.missing("openssl is not installed, so no certificate can be made")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cats.pem", folder / "cats.key"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=cats.test",
         "-addext", "subjectAltName=DNS:cats.test", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture
def secure_host(certificate: tuple[Path, Path]) -> Iterator[Host]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with running(Host(), tls=context) as host:
        host.answers["/cat.png"] = picture
        yield host


def test_certificate_is_checked_for_the_name_though_the_address_is_pinned(
    secure_host: Host,
    certificate: tuple[Path, Path],
    names: Names,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    monkeypatch.setattr(safe_http, "_tls_context", lambda: trusting)
    names.answers["cats.test"] = names.answers["dogs.test"] = [["127.0.0.1"]]
    images = loader(allowed_hosts=("cats.test", "dogs.test"))
    assert images.fetch(f"https://cats.test:{secure_host.port}/cat.png").data == PICTURE
    with pytest.raises(UpstreamError, match=r"certificate of dogs\.test cannot be trusted"):
        images.fetch(f"https://dogs.test:{secure_host.port}/cat.png")


def test_certificate_of_an_unknown_authority_is_refused(secure_host: Host, names: Names) -> None:
    names.answers["cats.test"] = [["127.0.0.1"]]
    with pytest.raises(UpstreamError, match="cannot be trusted"):
        loader(allowed_hosts=("cats.test",)).fetch(f"https://cats.test:{secure_host.port}/cat.png")


def test_default_port_is_left_out_of_the_host_header() -> None:
    # A signature over "host" would not fit "host:443".
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        url = safe_http.read_url("https://cats.test/cat.png")
        deadline = safe_http.Deadline(5)
        safe_http._exchange(ours, "GET", url, deadline, 10, {}, None)
        assert b"\r\nHost: cats.test\r\n" in theirs.recv(4096)


# --- limits ---


def drip(piece: bytes, *, head: bytes) -> Callable[[Request], None]:
    """Sends the head, then the piece for ever, each in time for a limit per read."""

    def answer(request: Request) -> None:
        request.wfile.write(head)
        while True:
            request.wfile.write(piece)
            request.wfile.flush()
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda request: time.sleep(3), id="no answer"),
        pytest.param(drip(b"X-More: 1\r\n", head=b"HTTP/1.1 200 OK\r\n"), id="endless head"),
        pytest.param(drip(b"H", head=b""), id="dripping first line"),
        pytest.param(
            drip(b"x", head=b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"),
            id="dripping body",
        ),
        pytest.param(drip(b"x", head=b"HTTP/1.1 200 OK\r\n\r\n"), id="dripping without length"),
        pytest.param(
            drip(b"1\r\nx\r\n", head=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            id="dripping chunks",
        ),
        pytest.param(drip(b"x", head=b"HTTP/1.1 404 Not Found\r\n\r\n"), id="dripping refusal"),
    ],
)
def test_time_limit_holds_for_the_whole_exchange(
    elsewhere: Host, answer: Callable[[Request], None]
) -> None:
    elsewhere.answers["/slow"] = answer
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout, match=r"limit 0\.4 s") as caught:
        loader(allowed_hosts=("127.0.0.1",), timeout_s=0.4).fetch(f"{elsewhere.url}/slow")
    assert caught.value.status == 504
    assert time.monotonic() - began < 1.5


def test_time_limit_is_shared_by_the_redirects(elsewhere: Host) -> None:
    def slow_redirect(request: Request) -> None:
        time.sleep(0.15)
        redirect("/again")(request)

    elsewhere.answers["/again"] = slow_redirect
    with pytest.raises(UpstreamTimeout):
        loader(allowed_hosts=("127.0.0.1",), timeout_s=0.4).fetch(f"{elsewhere.url}/again")


def endless(head: bytes, piece: bytes, sent: list[int]) -> Callable[[Request], None]:
    def answer(request: Request) -> None:
        request.wfile.write(head)
        while True:
            sent.append(request.connection.send(piece))

    return answer


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536, id="no length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"10000\r\n" + b"x" * 65536 + b"\r\n",
            id="chunks",
        ),
    ],
)
def test_endless_body_is_cut_off_early(elsewhere: Host, head: bytes, piece: bytes) -> None:
    sent: list[int] = []
    elsewhere.answers["/endless"] = endless(head, piece, sent)
    images = loader(allowed_hosts=("127.0.0.1",), max_bytes=10**6)
    with pytest.raises(ImageTooLarge, match="larger than 1 MB") as caught:
        images.fetch(f"{elsewhere.url}/endless")
    assert caught.value.status == 413
    time.sleep(0.1)
    assert sum(sent) < 12e6  # what the kernel's buffers took besides


def test_announced_length_over_the_limit_is_refused_unread(elsewhere: Host) -> None:
    elsewhere.answers["/big"] = lambda request: request.wfile.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"
    )
    with pytest.raises(ImageTooLarge):
        loader(allowed_hosts=("127.0.0.1",), max_bytes=10**6).fetch(f"{elsewhere.url}/big")


def test_image_of_exactly_the_limit_is_fetched(elsewhere: Host) -> None:
    images = loader(allowed_hosts=("127.0.0.1",), max_bytes=len(PICTURE))
    assert images.fetch(f"{elsewhere.url}/cat.png").data == PICTURE
    with pytest.raises(ImageTooLarge):
        loader(allowed_hosts=("127.0.0.1",), max_bytes=len(PICTURE) - 1).fetch(
            f"{elsewhere.url}/cat.png"
        )


def test_length_that_promises_more_than_comes_is_an_error(elsewhere: Host, tmp_path: Path) -> None:
    def cut_off(request: Request) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")
        request.close_connection = True

    elsewhere.answers["/half"] = cut_off
    images = loader(allowed_hosts=("127.0.0.1",), cache_dir=tmp_path)
    with pytest.raises(UpstreamError, match="broke off its answer"):
        images.fetch(f"{elsewhere.url}/half")
    assert images.key(f"{elsewhere.url}/half") is None


def test_chunks_that_break_off_are_an_error(elsewhere: Host) -> None:
    def cut_off(request: Request) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf")
        request.close_connection = True

    elsewhere.answers["/half"] = cut_off
    with pytest.raises(UpstreamError, match="broke off its answer"):
        loader(allowed_hosts=("127.0.0.1",)).fetch(f"{elsewhere.url}/half")


def test_length_that_promises_less_than_comes_is_kept_to(elsewhere: Host) -> None:
    elsewhere.answers["/more"] = lambda request: request.wfile.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmore than four"
    )
    assert loader(allowed_hosts=("127.0.0.1",)).fetch(f"{elsewhere.url}/more").data == b"more"


def test_what_is_not_http_is_an_error(elsewhere: Host) -> None:
    elsewhere.answers["/x"] = lambda request: request.wfile.write(b"220 FTP here\r\n\r\n")
    with pytest.raises(UpstreamError):
        loader(allowed_hosts=("127.0.0.1",)).fetch(f"{elsewhere.url}/x")


def test_compressed_answer_is_refused(elsewhere: Host) -> None:
    elsewhere.answers["/x"] = lambda request: request.reply(
        200, gzip.compress(PICTURE), Content_Encoding="gzip"
    )
    with pytest.raises(UpstreamError, match="compressed answer"):
        loader(allowed_hosts=("127.0.0.1",)).fetch(f"{elsewhere.url}/x")


def test_web_page_instead_of_an_image_says_so(elsewhere: Host) -> None:
    elsewhere.answers["/x"] = lambda request: request.reply(200, b"\n<!DOCTYPE html><html>log in")
    with pytest.raises(ImageError, match="leads to a web page"):
        loader(allowed_hosts=("127.0.0.1",)).fetch(f"{elsewhere.url}/x")


def test_empty_file_says_so(elsewhere: Host) -> None:
    elsewhere.answers["/x"] = lambda request: request.reply(200)
    with pytest.raises(ImageError, match="is empty"):
        loader(allowed_hosts=("127.0.0.1",)).fetch(f"{elsewhere.url}/x")


def test_redirects_end_after_five(elsewhere: Host) -> None:
    for n in range(1, 7):
        elsewhere.answers[f"/{n}"] = redirect(f"/{n - 1}", 307)
    elsewhere.answers["/0"] = picture
    images = loader(allowed_hosts=("127.0.0.1",))
    assert images.fetch(f"{elsewhere.url}/5").data == PICTURE
    with pytest.raises(UpstreamError, match="more than 5 times"):
        images.fetch(f"{elsewhere.url}/6")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, UpstreamError, "opens without logging in"),
        (403, UpstreamError, "signature may have run out"),
        (404, ImageError, "no such image"),
        (410, ImageError, "no such image"),
        (429, UpstreamError, "fewer requests"),
        (500, UpstreamError, "Try again later"),
        (206 + 100, UpstreamError, "status 306"),
        (302, UpstreamError, "status 302"),  # without a Location
    ],
)
def test_each_refusal_of_a_host_has_its_sentence(
    elsewhere: Host, status: int, kind: type[Exception], words: str
) -> None:
    elsewhere.answers["/x"] = lambda request: request.reply(status, b"Traceback /srv/app.py")
    query = "?X-Amz-Signature=5ecre7" if status == 403 else ""
    with pytest.raises(kind) as caught:
        loader(allowed_hosts=("127.0.0.1",)).fetch(f"{elsewhere.url}/x{query}")
    assert words in str(caught.value)
    assert "/srv" not in str(caught.value)
    assert "5ecre7" not in str(caught.value)


def test_dead_host_says_so() -> None:
    with pytest.raises(UpstreamError, match="cannot be reached"):
        loader(allowed_hosts=("127.0.0.1",)).fetch("http://127.0.0.1:9/cat.png")


# --- what is kept ---


def test_second_fetch_asks_nobody(label_studio: FakeLabelStudio, tmp_path: Path) -> None:
    images = loader(label_studio, cache_dir=tmp_path)
    uri = "/data/upload/1/cat.png"
    assert images.key(uri) is None
    images.fetch(uri)
    asked = len(label_studio.seen)
    assert images.key(uri) == SHA256
    assert images.fetch(uri).data == PICTURE
    # Another process that shares the folder knows it as well.
    assert loader(label_studio, cache_dir=tmp_path).key(uri) == SHA256
    assert len(label_studio.seen) == asked


class Versions:
    """An image at an address, with the ETag of its version; counts how often it is sent."""

    def __init__(self) -> None:
        self.data, self.etag, self.sent = PICTURE, '"v1"', 0

    def __call__(self, request: Request) -> None:
        if request.headers.get("If-None-Match") == self.etag:
            request.reply(304)
        else:
            self.sent += 1
            request.reply(200, self.data, ETag=self.etag)


@pytest.fixture
def versions(elsewhere: Host) -> Versions:
    elsewhere.answers["/cat.png"] = answer = Versions()
    return answer


def test_after_ten_minutes_an_unchanged_image_is_not_sent_again(
    elsewhere: Host, versions: Versions, tmp_path: Path
) -> None:
    clock = Clock()
    images = loader(clock=clock, cache_dir=tmp_path, allowed_hosts=("127.0.0.1",))
    url = f"{elsewhere.url}/cat.png"
    for _ in range(3):
        assert images.fetch(url).sha256 == SHA256
        clock.now += 601
    assert (versions.sent, len(elsewhere.seen)) == (1, 3)


def test_hash_is_still_known_where_only_the_shared_store_survived(
    elsewhere: Host, versions: Versions, tmp_path: Path
) -> None:
    clock = Clock()
    url = f"{elsewhere.url}/cat.png"
    loader(clock=clock, cache_dir=tmp_path, allowed_hosts=("127.0.0.1",)).fetch(url)
    shutil.rmtree(tmp_path / "images")
    images = loader(clock=clock, cache_dir=tmp_path, allowed_hosts=("127.0.0.1",))
    assert images.key(url) == SHA256
    assert len(elsewhere.seen) == 1
    clock.now += 601
    assert images.key(url) == SHA256  # its host was asked, and sent nothing
    assert images.key(url) == SHA256
    assert (versions.sent, len(elsewhere.seen)) == (1, 2)
    # Another process believes what this one was told.
    assert loader(clock=clock, cache_dir=tmp_path, allowed_hosts=("127.0.0.1",)).key(url) == SHA256
    assert len(elsewhere.seen) == 2
    assert images.fetch(url).data == PICTURE
    assert versions.sent == 2


def test_replaced_image_has_its_new_hash_after_ten_minutes_in_every_process(
    elsewhere: Host, versions: Versions, tmp_path: Path
) -> None:
    clock = Clock()
    url = f"{elsewhere.url}/cat.png"
    here, there = (
        loader(clock=clock, cache_dir=tmp_path, allowed_hosts=("127.0.0.1",)) for _ in range(2)
    )
    assert here.fetch(url).sha256 == there.fetch(url).sha256 == SHA256
    versions.data, versions.etag = b"another picture", '"v2"'
    assert here.key(url) == there.key(url) == SHA256
    clock.now += 601
    new = hashlib.sha256(b"another picture").hexdigest()
    assert here.key(url) == there.key(url) == new
    assert here.fetch(url).data == there.fetch(url).data == b"another picture"
    assert versions.sent == 2


def test_image_without_etag_is_fetched_again_after_ten_minutes(
    elsewhere: Host, tmp_path: Path
) -> None:
    clock = Clock()
    images = loader(clock=clock, cache_dir=tmp_path, allowed_hosts=("127.0.0.1",))
    images.fetch(f"{elsewhere.url}/cat.png")
    clock.now += 601
    assert images.key(f"{elsewhere.url}/cat.png") is None
    assert len(elsewhere.seen) == 1


def test_after_ten_minutes_a_changed_image_is_seen(elsewhere: Host, tmp_path: Path) -> None:
    clock = Clock()
    images = loader(clock=clock, cache_dir=tmp_path, allowed_hosts=("127.0.0.1",))
    url = f"{elsewhere.url}/cat.png"
    assert images.fetch(url).data == PICTURE
    elsewhere.answers["/cat.png"] = lambda request: request.reply(200, b"another picture")
    assert images.fetch(url).data == PICTURE
    clock.now += 601
    assert images.fetch(url).data == b"another picture"


def test_damaged_file_of_the_cache_is_fetched_again(elsewhere: Host, tmp_path: Path) -> None:
    elsewhere.answers["/cat.png"] = lambda request: request.reply(200, PICTURE, ETag='"v1"')
    images = loader(cache_dir=tmp_path, allowed_hosts=("127.0.0.1",))
    images.fetch(f"{elsewhere.url}/cat.png")
    (kept,) = (tmp_path / "images").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert images.fetch(f"{elsewhere.url}/cat.png").data == PICTURE
    assert "If-None-Match" not in elsewhere.seen[1][1]


def test_new_signature_does_not_fetch_the_image_again(elsewhere: Host, tmp_path: Path) -> None:
    images = loader(cache_dir=tmp_path, allowed_hosts=("127.0.0.1",))
    images.fetch(f"{elsewhere.url}/cat.png?X-Amz-Signature=one&X-Amz-Date=1&v=2")
    images.fetch(f"{elsewhere.url}/cat.png?X-Amz-Signature=two&X-Amz-Date=2&v=2")
    assert len(elsewhere.seen) == 1
    images.fetch(f"{elsewhere.url}/cat.png?X-Amz-Signature=two&X-Amz-Date=2&v=3")
    assert len(elsewhere.seen) == 2


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/x?X-Goog-Signature=1&a=b", "http://h/x?a=b"),
        ("http://h/cat.jpg?Signature=1&Expires=2&Key-Pair-Id=3", "http://h/cat.jpg"),
        ("http://h/cat.jpg?sv=1&sr=b&sig=2&width=9", "http://h/cat.jpg?width=9"),
        ("http://h/cat.jpg?alt=media&token=1#x", "http://h/cat.jpg?alt=media"),
        ("http://h/cat.jpg?se=1&expires=2", "http://h/cat.jpg?se=1&expires=2"),
        ("http://h/show?token=1", "http://h/show?token=1"),
        ("http://h/show?sig=1", "http://h/show?sig=1"),
        ("http://H/a b?d=1", "http://h/a%20b?d=1"),
    ],
)
def test_name_of_an_address_is_without_its_signature(url: str, name: str) -> None:
    assert without_signature(url) == name


def test_clicks_on_one_new_image_share_one_fetch(elsewhere: Host, tmp_path: Path) -> None:
    def slow_picture(request: Request) -> None:
        time.sleep(0.2)
        picture(request)

    elsewhere.answers["/cat.png"] = slow_picture
    images = loader(cache_dir=tmp_path, allowed_hosts=("127.0.0.1",))
    together = threading.Barrier(6)

    def fetch(_: int) -> bytes:
        together.wait()
        return images.fetch(f"{elsewhere.url}/cat.png").data

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(fetch, range(6))) == {PICTURE}
    assert len(elsewhere.seen) == 1


def are_waiting_for_their_turn() -> int:
    """How many threads stand at the lock of `OneAtATime`."""
    return sum(frame.f_code.co_name == "turn" for frame in sys._current_frames().values())


def test_clicks_that_wait_for_a_fetch_that_fails_do_not_ask_again_one_after_the_other(
    elsewhere: Host,
) -> None:
    let_go = threading.Event()

    def hang(request: Request) -> None:
        let_go.wait(20)
        request.reply(500)

    elsewhere.answers["/cat.png"] = hang
    images, url = loader(allowed_hosts=("127.0.0.1",)), f"{elsewhere.url}/cat.png"

    def fetch() -> str:
        with pytest.raises(UpstreamError) as caught:
            images.fetch(url)
        return caught.value.sentence

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(fetch) for _ in range(4)]
        wait_until(lambda: elsewhere.seen and are_waiting_for_their_turn() == 3, "all clicks")
        let_go.set()
        assert len({click.result() for click in waiting}) == 1
    assert len(elsewhere.seen) == 1
    elsewhere.answers["/cat.png"] = picture
    assert images.fetch(url).data == PICTURE


def test_full_or_forbidden_disk_stops_no_click(
    elsewhere: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    images = loader(cache_dir=blocked / "cache", allowed_hosts=("127.0.0.1",))
    assert images.fetch(f"{elsewhere.url}/cat.png").data == PICTURE
    assert images.fetch(f"{elsewhere.url}/cat.png").data == PICTURE
    assert "cache folder cannot be written" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_nothing_of_an_address_or_a_token_reaches_the_log(
    label_studio: FakeLabelStudio, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    images = loader(label_studio, cache_dir=tmp_path)
    images.fetch("/data/upload/1/cat.png?sig=5ecre7")
    with pytest.raises(ImageError):
        images.fetch("/data/upload/1/5ecre7.png")
    assert "5ecre7" not in caplog.text
    assert "eyJ" not in caplog.text


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_file_or_socket_is_left_open(elsewhere: Host, tmp_path: Path) -> None:
    elsewhere.answers["/endless"] = endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536, [])
    images = loader(allowed_hosts=("127.0.0.1",), max_bytes=10**6, cache_dir=tmp_path)
    images.fetch(f"{elsewhere.url}/cat.png")
    time.sleep(0.1)
    before = open_files()
    for n in range(10):
        images.fetch(f"{elsewhere.url}/cat.png?n={n}")
        with pytest.raises(ImageTooLarge):
            images.fetch(f"{elsewhere.url}/endless")
    for _ in range(50):  # the server's side, in this same process, needs a moment
        if open_files() <= before:
            break
        time.sleep(0.05)
    assert open_files() <= before


@pytest.mark.parametrize(
    "wrong",
    [{"max_bytes": 0}, {"timeout_s": 0}, {"cache_bytes": -1}, {"allowed_hosts": ("http://x/",)}],
)
def test_settings_that_let_nothing_through_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageSettings(**wrong)
