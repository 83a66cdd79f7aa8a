"""Task data to image bytes: whatever a task may call an image, fetched within limits and kept.

The step before ``edgesam_core/image.py``: an address goes in, bytes and their sha256 come out.
Files of Label Studio are asked for with its token, cloud files through its presign call, all others
without any token and from public hosts only, unless the operator named the host. Redirects are
followed here by hand, and each hop is judged anew. Bytes stay on this machine's disk, and for ten
minutes an address is believed to mean the same bytes (image_ways.py); after that the host is asked
whether they have changed. It does not decode pixels.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin
from weakref import WeakValueDictionary

from backend.image_address import is_data_uri, read_data_uri, without_signature
from backend.image_ways import Way, Ways
from backend.label_studio import LabelStudioClient
from backend.label_studio_address import CLOUD_SCHEMES, is_file_path, is_loopback
from backend.one_at_a_time import OneAtATime
from backend.safe_http import Deadline, HttpAnswer, origin_of, read_url, send
from backend.store import NO_STORE, Store
from edgesam_core.errors import EdgeSamError, ImageError, UpstreamError

MAX_REDIRECTS = 5

_REDIRECTS = (301, 302, 303, 307, 308)
_ETAG = re.compile(r'(W/)?"[!#-~]*"')  # RFC 9110, 8.8.3, without its letters beyond ASCII


@dataclass(frozen=True)
class ImageSettings:
    """What may be fetched, how much of it, and where it is kept."""

    cache_bytes: int = 2 * 1024**3
    # Bytes of disk for fetched images, the longest unused go first; 0 keeps none, and every image
    # that is to be encoded is fetched.
    max_bytes: int = 100 * 1000**2
    # Bytes of the largest file that is fetched.
    max_pixels: int = 100 * 1000**2
    # Pixels (width times height) of the largest image that is opened.
    timeout_s: float = 30.0
    # Seconds for fetching one image, redirects and all; Label Studio itself waits 100.
    allowed_hosts: tuple[str, ...] = ()
    # Hosts (`host` or `host:port`, comma-separated) that may lie at private addresses.

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through.

        Raises:
            ValueError: With the name of the field.
        """
        for name in ("max_bytes", "max_pixels", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}.")
        if self.cache_bytes < 0:
            raise ValueError(f"cache_bytes must be 0 (no cache) or more, not {self.cache_bytes}.")
        hosts = tuple(host.strip().lower() for host in self.allowed_hosts if host.strip())
        if wrong := [host for host in hosts if "/" in host or "@" in host]:
            raise ValueError(
                f"allowed_hosts takes names such as minio or minio:9000, not {wrong[0]}."
            )
        object.__setattr__(self, "allowed_hosts", hosts)


@dataclass(frozen=True)
class ImageBytes:
    """A file as it was fetched, not yet opened, and the sha256 of its bytes in hex."""

    data: bytes
    sha256: str


class ImageLoader:
    """Fetches images and keeps them; thread-safe, one fetch per address at a time.

    Who waits for a fetch that fails is told the same, and asks no host again.
    """

    def __init__(
        self,
        settings: ImageSettings,
        label_studio: LabelStudioClient,
        *,
        kept: Store = NO_STORE,
        shared: Store = NO_STORE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Fetches nothing yet.

        Args:
            settings: Limits and allowed hosts.
            label_studio: Where its own files come from.
            kept: For the bytes of images, by their sha256; of this machine alone.
            shared: For the ways to them; what the embeddings are shared through, too.
            clock: Seconds since the epoch, shared with the other processes of one store.
        """
        self._settings = settings
        self._label_studio = label_studio
        self._kept = kept
        self._ways = Ways(shared)
        self._clock = clock
        self._in_flight: WeakValueDictionary[str, OneAtATime] = WeakValueDictionary()
        self._in_flight_guard = threading.Lock()

    def key(self, uri: str, task_id: int | None = None) -> str | None:
        """The sha256 of the image, if that can be told without having its bytes.

        For ten minutes nobody is asked. After that its host is, whether the image is still what its
        ETag says, so an embedding stays warm where the image itself was forgotten.

        None: call ``fetch``. ``data:`` URIs are always None, since their bytes are at hand.

        Raises:
            EdgeSamError: As ``fetch``.
        """
        if is_data_uri(uri):
            return None
        name, url = self._address(uri, task_id)
        way = self._ways.get(name, self._clock())
        if way is not None and way.is_believed(self._clock()):
            return way.sha256
        with self._fetching(name).turn():
            way = self._ways.get(name, self._clock())
            if way is None or not _has_etag(way):
                return None
            if not way.is_believed(self._clock()):
                way, _ = self._ask(name, url, way)
        return way.sha256

    def fetch(self, uri: str, *, task_id: int | None = None) -> ImageBytes:
        """The bytes of an image.

        Args:
            uri: As task data has it: a path in Label Studio, a cloud, http(s) or data URI.
            task_id: The task it belongs to; Label Studio resolves cloud URIs for it.

        Raises:
            ImageError: Not an address, not an image's, or nothing there.
            ImageTooLarge: Over ``max_bytes``.
            HostRefused: A private host that is not named in ``allowed_hosts``.
            UpstreamTimeout: Not done within ``timeout_s``.
            UpstreamError: Label Studio or the host refused or failed.
        """
        if is_data_uri(uri):
            data = read_data_uri(uri, self._settings.max_bytes)
            return ImageBytes(data, hashlib.sha256(data).hexdigest())
        name, url = self._address(uri, task_id)
        with self._fetching(name).turn():
            way = self._ways.get(name, self._clock())
            kept = self._kept.get(way.sha256) if way else None
            if way is None or kept is None:
                way, kept = self._ask(name, url, None)
            elif not way.is_believed(self._clock()):
                way, changed = self._ask(name, url, way)
                kept = kept if changed is None else changed
            assert kept is not None, "without an ETag no host can say that nothing has changed"
            return ImageBytes(kept, way.sha256)

    def _fetching(self, name: str) -> OneAtATime:
        """Whoever is asking an address: the second finds what the first has fetched."""
        with self._in_flight_guard:
            return self._in_flight.setdefault(name, OneAtATime())

    def _ask(self, name: str, url: str, way: Way | None) -> tuple[Way, bytes | None]:
        """Fetch an image and keep it, unless its host says that it is what ``way`` leads to.

        Returns:
            The way as of now, and the bytes; None where they have not changed.
        """
        etag = way.etag if way and _has_etag(way) else None
        answer = self._download(url, etag)
        if way and answer.status == 304:
            way = Way(way.sha256, way.etag, self._clock())
            self._ways.remember(name, way)
            return way, None
        data = answer.body
        if not data:
            raise ImageError("The image is empty. Upload it again.")
        if data[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise ImageError(
                "The image's address leads to a web page. Use the address of the image itself, one "
                "that opens without logging in."
            )
        way = Way(hashlib.sha256(data).hexdigest(), answer.headers.get("ETag"), self._clock())
        self._kept.put(way.sha256, data)
        self._ways.remember(name, way)
        return way, data

    def _address(self, uri: str, task_id: int | None) -> tuple[str, str]:
        """The name under which the image is kept, and the address to ask."""
        uri = uri.strip()
        scheme = uri.partition("://")[0].lower() if "://" in uri else ""
        if scheme in CLOUD_SCHEMES:
            if task_id is None:
                raise ImageError(
                    "An image in cloud storage can only be fetched for a task of Label Studio, "
                    "and the request names no task. Send the task's id."
                )
            # The name has the task in it: another project may have another bucket of that name.
            url = self._label_studio.address.presign(task_id, uri)
        elif not scheme:
            if not is_file_path("/" + uri.lstrip("/")) and not uri.startswith("/"):
                raise ImageError(
                    "The task has no usable address for its image. Use http, https, s3, gs, "
                    "azure-blob, a data URI or a file uploaded to Label Studio."
                )
            url = self._label_studio.address.resolve(uri)
        else:
            parts = read_url(uri)
            url = self._label_studio.address.resolve(uri)
            # Label Studio writes its own idea of its address into tasks from local storages, and
            # that is often localhost, where the backend sees only itself.
            if is_file_path(parts.path or "") and is_loopback(uri) and not self._is_named(url):
                url = self._label_studio.address.resolve(parts.request_uri)
        return without_signature(url), url

    def _is_named(self, url: str) -> bool:
        """Whether the operator named this address's host, or it is Label Studio's origin."""
        origin = origin_of(read_url(url))
        _, host, port = origin
        named = self._settings.allowed_hosts
        is_label_studio = origin == self._label_studio.address.origin
        return is_label_studio or host in named or f"{host}:{port}" in named

    def _download(self, url: str, etag: str | None) -> HttpAnswer:
        """The answer where the redirects end: 2xx with the bytes, or 304 where ``etag`` fits."""
        deadline, max_bytes = Deadline(self._settings.timeout_s), self._settings.max_bytes
        headers = {"If-None-Match": etag} if etag else {}
        for _ in range(MAX_REDIRECTS + 1):
            own = self._label_studio.address.owns(url)
            if own:
                answer = self._label_studio.send(
                    url, deadline=deadline, max_bytes=max_bytes, headers=headers
                )
            else:
                answer = send(
                    "GET",
                    read_url(url),
                    deadline=deadline,
                    max_bytes=max_bytes,
                    private_allowed=self._is_named(url),
                    headers=headers,
                )
            if 200 <= answer.status < 300 or (answer.status == 304 and etag):
                return answer
            location = _as_utf8(answer.headers.get("Location", ""))
            to_login = own and "/user/login" in location
            if answer.status not in _REDIRECTS or not location or to_login:
                raise self._label_studio.explain(answer) if own else _explain(url, answer.status)
            if is_data_uri(location):
                data = read_data_uri(location, self._settings.max_bytes)
                return HttpAnswer(200, answer.headers, data)
            url = urljoin(url, location)
        raise UpstreamError(
            f"The image's address was sent on more than {MAX_REDIRECTS} times. "
            "Use the address at which it ends."
        )


def _has_etag(way: Way) -> bool:
    return _ETAG.fullmatch(way.etag or "") is not None


def _as_utf8(header: str) -> str:
    """A header whose bytes were UTF-8; http.client reads all of them as Latin-1."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _explain(url: str, status: int) -> EdgeSamError:
    """What a refusal of a host that is not Label Studio means, and the cure."""
    parts = read_url(url)
    host = origin_of(parts)[1]
    if status in (401, 403):
        cure = "Check that its address opens without logging in."
        if is_file_path(parts.path or ""):
            cure = "If that is your Label Studio, set LABEL_STUDIO_URL to it."
        elif parts.query:
            cure = "If its address is signed, the signature may have run out: import it again."
        return UpstreamError(f"{host} does not give the image away (status {status}). {cure}")
    if status in (404, 410):
        return ImageError(f"{host} has no such image. Correct its address in the task.")
    if status == 429:
        return UpstreamError(f"{host} asks for fewer requests. Wait a moment and try again.")
    if status >= 500:
        return UpstreamError(f"{host} failed with an error of its own ({status}). Try again later.")
    return UpstreamError(f"{host} answered with status {status} instead of an image.")
