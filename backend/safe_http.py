"""One HTTP request whose address is checked before a byte is sent and whose limits always hold.

Task data names the images, and anyone who can import a task writes task data. So a name is resolved
once, every address it has is checked, and the connection goes to a checked address, never to what
the name says a moment later. Bytes are counted as they arrive; the time limit covers the whole
exchange, however slowly a server drips.

Written on ``http.client`` on purpose: it follows no redirect, keeps no cookies, reads no ``.netrc``
and no proxy variables, so a token cannot leave by a way that is not in this file. It knows neither
Label Studio nor redirects (label_studio.py, images.py).
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

import certifi
from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from edgesam_core.errors import (
    EdgeSamError,
    HostRefused,
    ImageError,
    ImageTooLarge,
    UpstreamError,
    UpstreamTimeout,
)

CONNECT_TIMEOUT_S = 5.0
"""For one address of a host, so that a dead first address leaves time for the second."""

_CHUNK_BYTES = 256 * 1024
_ERROR_BODY_BYTES = 8 * 1024  # enough for the reason that a server gives
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits

Origin = tuple[str, str, int]
"""(scheme, host, port): what must be equal for a token to be sent."""


@dataclass(frozen=True)
class HttpAnswer:
    """What a server answered; ``body`` is cut short where the status is an error."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Deadline:
    """A moment by which everything must be done."""

    def __init__(self, seconds: float) -> None:
        """Start the clock now."""
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, never zero.

        Raises:
            TimeoutError: None are.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def read_url(url: str) -> Url:
    """An http(s) address in its parts, percent-encoded where it has to be.

    The same parts are used for checking and for connecting, so the two cannot disagree.

    Raises:
        ImageError: It is not an http or https address with a host.
    """
    try:
        parts = parse_url(url)
    except LocationParseError as exc:
        raise ImageError(
            "The image's address cannot be understood. Correct it in the task."
        ) from exc
    if parts.scheme not in _DEFAULT_PORTS or not parts.host:
        raise ImageError(
            "The image's address is of a kind that is not fetched. "
            "Use http, https, s3, gs, azure-blob, a data URI or a file uploaded to Label Studio."
        )
    return parts


def origin_of(url: Url) -> Origin:
    """Scheme, host and port of an address that ``read_url`` gave."""
    assert url.scheme is not None
    assert url.host is not None
    return url.scheme, url.host.strip("[]").lower(), url.port or _DEFAULT_PORTS[url.scheme]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet; IPv4 inside IPv6 is unwrapped."""
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.sixtofour or ip.teredo:  # tunnels to an IPv4 address that nobody needs today
            return False
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped or ip
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def send(
    method: str,
    url: Url,
    *,
    deadline: Deadline,
    max_bytes: int,
    private_allowed: bool,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> HttpAnswer:
    """One request, one answer, whatever its status; redirects are answers.

    Args:
        method: ``GET`` or ``POST``.
        url: From ``read_url``.
        deadline: For everything together: connecting, waiting, reading.
        max_bytes: Limit of the answer's body.
        private_allowed: Whether the host may lie at a private address. False: every address that
            the name has must be public.
        headers: Sent to this address and nowhere else.
        body: Of a POST.

    Raises:
        HostRefused: The host has a private address.
        ImageTooLarge: The body is over ``max_bytes``.
        UpstreamTimeout: The deadline has passed.
        UpstreamError: No connection, a bad certificate, an answer that breaks off.
    """
    host = origin_of(url)[1]
    try:
        with contextlib.closing(_connect(url, deadline, private_allowed)) as sock:
            return _exchange(sock, method, url, deadline, max_bytes, headers or {}, body)
    except EdgeSamError:
        raise
    except TimeoutError as exc:
        raise UpstreamTimeout(
            f"{host} took too long to answer (limit {deadline.seconds:g} s). "
            "Check that it is up, then try again."
        ) from exc
    except (socket.gaierror, UnicodeError) as exc:
        raise UpstreamError(
            f"The host {host} is not known here. Check the address and the name service (DNS)."
        ) from exc
    except ssl.SSLCertVerificationError as exc:
        raise UpstreamError(
            f"The certificate of {host} cannot be trusted. Renew it, or add its authority to this "
            "machine's certificates."
        ) from exc
    except (OSError, http.client.HTTPException) as exc:
        raise UpstreamError(
            f"{host} cannot be reached, or broke off its answer. Check that it is up.",
            detail=f"{type(exc).__name__} {getattr(exc, 'strerror', None) or ''}".strip(),
        ) from exc


def _connect(url: Url, deadline: Deadline, private_allowed: bool) -> socket.socket:
    scheme, host, port = origin_of(url)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A name can have a public and a private address; one private address refuses them all.
    if not private_allowed and not all(is_public(str(entry[4][0])) for entry in found):
        raise HostRefused(
            f"The image lies on a private host ({host}). If it is meant to be fetched from there, "
            "name the host in EDGESAM_IMAGE_HOSTS."
        )
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(min(CONNECT_TIMEOUT_S, deadline.left()))
            sock.connect(address)
            if scheme == "https":
                # The certificate is checked for the name, though we connected to an address.
                sock.settimeout(deadline.left())
                return _tls_context().wrap_socket(sock, server_hostname=host)
            return sock
        except ssl.SSLError:
            sock.close()
            raise
        except OSError as exc:
            sock.close()
            failure = exc
    raise failure


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """The machine's authorities, which may include a company's own, and those of certifi."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _exchange(
    sock: socket.socket,
    method: str,
    url: Url,
    deadline: Deadline,
    max_bytes: int,
    headers: Mapping[str, str],
    body: bytes | None,
) -> HttpAnswer:
    scheme, host, port = origin_of(url)
    connection = http.client.HTTPConnection(host, port)
    connection.default_port = _DEFAULT_PORTS[scheme]  # left out of the Host header, which is signed
    connection.sock = _TimedSocket(sock, deadline)
    connection.request(
        method,
        url.request_uri,
        body,
        {"User-Agent": "edgesam-label-studio", "Connection": "close", **headers},
    )
    response = connection.getresponse()
    failed = not 200 <= response.status < 300
    if not failed and response.getheader("Content-Encoding", "identity") != "identity":
        raise UpstreamError(
            f"{host} sent a compressed answer though none was asked for. "
            "Store the file without a content encoding."
        )
    limit = min(max_bytes, _ERROR_BODY_BYTES) if failed else max_bytes
    announced = response.length  # None: chunked, or until the connection closes
    if announced is not None and announced > limit and not failed:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    while size <= limit and (announced is None or size < announced):
        # read1 returns what one read gives: a full read would wait for all of it, untimed.
        chunk = response.read1(_CHUNK_BYTES)
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
    if not failed and size > limit:
        raise _too_large(max_bytes)
    if not failed and announced is not None and size < announced:
        raise http.client.IncompleteRead(b"", announced - size)
    return HttpAnswer(response.status, response.headers, b"".join(chunks)[:announced])


def _too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"The image is larger than {max_bytes / 1e6:g} MB. "
        "Make it smaller, or raise EDGESAM_MAX_IMAGE_BYTES."
    )


class _TimedSocket:
    """A socket as ``http.client`` uses one; each step may take only the time that is left."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._deadline))

    def close(self) -> None:
        """Left to ``send``, since the answer is read after ``http.client`` closes."""


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: Buffer
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)
