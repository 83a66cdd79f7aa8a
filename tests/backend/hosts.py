"""Real HTTP servers on loopback: one whose answers a test writes, and Label Studio's protocol.

`FakeLabelStudio` speaks what a test must be able to break (tokens that end, revoked ones, presigned
cloud files); Label Studio itself is asked in tests/system.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

Answer = Callable[["Request"], object]


class Request(BaseHTTPRequestHandler):
    """One request; an answer is a function that takes it and writes to it."""

    protocol_version = "HTTP/1.1"
    server: Host

    def do_GET(self) -> None:
        self.server.handle(self)

    def do_POST(self) -> None:
        self.server.handle(self)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def query(self, name: str) -> str:
        return parse_qs(urlsplit(self.path).query)[name][0]

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def reply_json(self, status: int, value: Any) -> None:
        self.reply(status, json.dumps(value).encode(), Content_Type="application/json")

    def log_message(self, *_: Any) -> None:
        pass


class Host(ThreadingHTTPServer):
    """A server whose answers the test writes: ``host.answers["/x"] = lambda request: ...``."""

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Request)
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        # (path with query, headers) of each request, in order

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.port}"

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def paths(self) -> list[str]:
        return [path.partition("?")[0] for path, _ in self.seen]

    def handle(self, request: Request) -> None:
        self.seen.append((request.path, dict(request.headers.items())))
        answer = self.answers.get(request.path.partition("?")[0])
        if answer is None:
            request.reply(404, b"not here")
        else:
            answer(request)

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what some of these tests are about."""


AnyHost = TypeVar("AnyHost", bound=Host)


@contextmanager
def running(host: AnyHost, tls: ssl.SSLContext | None = None) -> Iterator[AnyHost]:
    if tls:
        host.socket = tls.wrap_socket(host.socket, server_side=True)
    thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        host.shutdown()
        host.server_close()
        thread.join()


def jwt(**claims: Any) -> str:
    """A token of a JWT's shape; nobody here checks its signature."""

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part(claims)}.c2lnbmF0dXJl"


class FakeLabelStudio(Host):
    """Tokens, files and presigned cloud files as Label Studio 1.23.2 handles them."""

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self.prefix = prefix
        self.personal = jwt(token_type="refresh", exp=time.time() + 1e6)
        self.legacy = "0123456789abcdef0123456789abcdef01234567"
        self.legacy_enabled = True
        self.revoked = False
        self.refreshes = 0
        self.refresh_takes_s = 0.0
        self.files: dict[str, Answer] = {}
        # path without prefix -> what a caller with a valid token gets
        self._access: set[str] = set()

    @property
    def url(self) -> str:
        return super().url + self.prefix

    def forget_access_tokens(self) -> None:
        """As a restart with another secret key does."""
        self._access.clear()

    def handle(self, request: Request) -> None:
        self.seen.append((request.path, dict(request.headers.items())))
        path = request.path.partition("?")[0]
        if not path.startswith(self.prefix + "/"):
            request.reply(404)
            return
        path = path.removeprefix(self.prefix)
        if path == "/api/token/refresh/" and request.command == "POST":
            self._refresh(request)
        elif path == "/health/":
            request.reply_json(200, {"status": "UP"})
        elif refusal := self._refusal(request.headers.get("Authorization", "")):
            request.reply_json(401, {"detail": refusal})
        elif answer := self.files.get(path):
            answer(request)
        else:
            request.reply_json(404, {"detail": "Not found."})

    def _refresh(self, request: Request) -> None:
        time.sleep(self.refresh_takes_s)
        self.refreshes += 1
        personal = json.loads(request.body())["refresh"]
        if personal != self.personal or self.revoked:
            detail = "Token is blacklisted" if self.revoked else "Token is invalid or expired"
            request.reply_json(401, {"detail": detail, "code": "token_not_valid"})
            return
        now = time.time()
        access = jwt(token_type="access", iat=now, exp=now + 300, jti=self.refreshes)
        self._access.add(access)
        request.reply_json(200, {"access": access})

    def _refusal(self, authorization: str) -> str | None:
        kind, _, token = authorization.partition(" ")
        if kind == "Bearer" and token in self._access:
            return None
        if kind == "Token" and token == self.legacy:
            if self.legacy_enabled:
                return None
            return (
                "Authentication token no longer valid: legacy token authentication has been "
                "disabled for this organization"
            )
        return "Authentication credentials were not provided."
