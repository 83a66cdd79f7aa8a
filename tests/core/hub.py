"""A Hugging Face hub on loopback: as much of its protocol as fetching files needs.

As on the real one, the record of a file comes from ``paths-info``, and ``resolve`` redirects to
where the bytes are, which can be asked for from any position.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the hub holds, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    # path in the repository -> content
    records: dict[str, bytes] = field(default_factory=dict)
    # path -> content that the record was made from, where it is not the one that is sent
    without_checksum: bool = False
    cut_after: list[int] = field(default_factory=list)
    # the next answers with a body end after this many bytes
    refuses_with: int | None = None
    # status of every answer that should hold a file
    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    # method, path, Range

    def ranges(self) -> list[str]:
        """The Range header of every request for bytes."""
        return [asked for method, path, asked in self.requests if path.startswith("/cdn/")]


@contextmanager
def running_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub that holds these files in the space chongzhou/EdgeSAM."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    space = "spaces/chongzhou/EdgeSAM"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self.note()
            if self.path != f"/api/{space}/paths-info/main":
                return self.answer(404, b"{}")
            paths = parse_qs(body)["paths"]
            records = [self.record(path) for path in paths if path in hub.files]
            return self.answer(200, json.dumps(records).encode(), "application/json")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            self.note()
            path = unquote(self.path)
            if match := re.fullmatch(f"/{space}/resolve/main/(.+)", path):
                if match[1] not in hub.files:
                    return self.answer(404, b"Entry not found", error="EntryNotFound")
                return self.redirect(match[1])
            if match := re.fullmatch("/cdn/(.+)", path):
                if hub.refuses_with is not None:
                    return self.answer(hub.refuses_with, b"not now")
                return self.send_bytes(hub.files[match[1]])
            return self.answer(404, b"")

        def note(self) -> None:
            hub.requests.append((self.command, self.path, self.headers.get("Range", "")))

        def record(self, path: str) -> dict[str, Any]:
            content = hub.records.get(path, hub.files[path])
            sha256 = hashlib.sha256(content).hexdigest()
            lfs = {"oid": sha256, "size": len(content), "pointerSize": 133}
            return {
                "type": "file", "oid": "a" * 40, "size": len(content), "path": path,
                **({} if hub.without_checksum else {"lfs": lfs}),
            }  # fmt: skip

        def redirect(self, path: str) -> None:
            content = hub.records.get(path, hub.files[path])
            self.send_response(302)
            self.send_header("Location", f"/cdn/{path}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_bytes(self, content: bytes) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            body = content[start:]
            self.send_response(206 if asked else 200)
            if asked:
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cut_after:
                body = body[: hub.cut_after.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def answer(
            self, status: int, body: bytes, kind: str = "text/plain", error: str = ""
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
