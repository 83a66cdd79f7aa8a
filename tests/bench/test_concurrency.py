from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import requests

from bench.annotator import image_host, photo
from bench.concurrency import under_load
from edgesam_core.image import read_image

ANNOTATORS = 3


class Server(ThreadingHTTPServer):
    """Answers clicks only when all annotators wait for theirs."""

    status = 200
    clicks = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.all_wait = threading.Barrier(ANNOTATORS)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer(200, b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.all_wait.wait(20) == 0:
            self.server.clicks += ANNOTATORS
        self._answer(self.server.status, b'{"results": [{"result": [{}]}]}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_annotators_click_at_the_same_time_while_the_health_is_checked(server):
    load = under_load(server.url, ANNOTATORS, lambda who: f"http://images/{who}", lasts_s=0)
    assert server.clicks == ANNOTATORS
    assert load.per_second > 0
    assert 0 < load.clicks.median_ms <= load.clicks.p95_ms
    assert min(load.health) > 0


def test_a_refused_click_ends_the_measurement(server):
    server.status = 503
    with pytest.raises(requests.HTTPError):
        under_load(server.url, ANNOTATORS, lambda who: f"http://images/{who}", lasts_s=0)


def test_every_address_of_the_image_host_is_another_image_with_the_same_pixels():
    with image_host({"small": photo((40, 30))}) as host:
        first, second = (requests.get(f"http://{host}/small/{n}.jpg").content for n in range(2))
    assert first != second
    assert np.array_equal(read_image(first), read_image(second))
