"""A small real reverse proxy: Label Studio under a path prefix, as nginx would put it there.

Label Studio learns of its prefix from LABEL_STUDIO_HOST and writes it into every address that it
hands out, but answers without it: taking it off is the proxy's part.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class _Forward(BaseHTTPRequestHandler):
    server: _Proxy

    def _pass_on(self) -> None:
        if not self.path.startswith(self.server.prefix + "/"):
            self.send_error(404, "not under the prefix")
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target_port, timeout=60)
        path = self.path.removeprefix(self.server.prefix)
        try:
            connection.request(self.command, path, body or None, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        pass


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, prefix: str, port: int, target_port: int) -> None:
        super().__init__(("127.0.0.1", port), _Forward)
        self.prefix = prefix
        self.target_port = target_port


@contextmanager
def running_proxy(prefix: str, port: int, target_port: int) -> Iterator[str]:
    """Forward ``/prefix/x`` on a port to ``/x`` on another; yields the address with the prefix."""
    proxy = _Proxy(prefix, port, target_port)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}{prefix}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
