"""Someone who clicks, and Label Studio that looks whether the server lives; the photos' host."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests
from PIL import Image
from skimage import data as skimage_data

from bench.timing import seconds

SIZES_WH = {"1200x900": (1200, 900), "4000x3000": (4000, 3000)}
CLICK = (0.42, 0.40)
"""Where the astronaut's face is: (x, y) as shares of the picture."""

HEALTH_EVERY_S = 0.1

LABEL_CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="mask" toName="image"><Label value="Object"/></BrushLabels>
<KeyPointLabels name="click" toName="image" smart="true"><Label value="Object"/></KeyPointLabels>
</View>"""


def photo(size_wh: tuple[int, int]) -> bytes:
    """scikit-image's astronaut as a JPEG of a given size."""
    buffer = io.BytesIO()
    Image.fromarray(skimage_data.astronaut()).resize(size_wh, Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=90
    )
    return buffer.getvalue()


@contextmanager
def image_host(photos: Mapping[str, bytes]) -> Iterator[str]:
    """A real HTTP server on loopback; yields its host:port.

    ``/NAME/anything.jpg`` is the photo with that name, and every such path another image: its own
    letters follow the end of the JPEG, where decoders do not look and hashes do.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = photos[self.path.split("/")[1]] + self.path.encode()
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def request(
    uri: str,
    size_wh: tuple[int, int],
    points: Sequence[tuple[float, float]],
    region_ids: Sequence[str],
) -> dict[str, Any]:
    """The body of /predict for positive clicks on one object, as Label Studio's page sends it.

    Args:
        uri: Of the image.
        size_wh: Its size in pixels.
        points: (x, y) as shares of it; from the second on they are corrections.
        region_ids: One for each, as the page gives each its own.
    """
    regions = [
        {
            "original_width": size_wh[0],
            "original_height": size_wh[1],
            "image_rotation": 0,
            "value": {"x": 100 * x, "y": 100 * y, "width": 0.2, "keypointlabels": ["Object"]},
            "is_positive": True,
            "id": region_id,
            "from_name": "click",
            "to_name": "image",
            "type": "keypointlabels",
            "origin": "manual",
        }
        for (x, y), region_id in zip(points, region_ids, strict=True)
    ]
    return {
        "tasks": [{"id": 1, "data": {"image": uri}}],
        "project": "1.1700000000",
        "label_config": LABEL_CONFIG,
        "params": {"context": {"result": regions}},
    }


def send(backend_url: str, body: Mapping[str, Any]) -> None:
    """Ask with the body of a `request`; the answer must hold a region."""
    answer = requests.post(backend_url + "/predict", json=body, timeout=60)
    answer.raise_for_status()
    assert answer.json()["results"][0]["result"], "a click was answered without a region"


def click(
    backend_url: str,
    uri: str,
    size_wh: tuple[int, int],
    at: tuple[float, float] = CLICK,
    *,
    region_id: str = "click00001",
) -> None:
    """One positive click, sent; see `request` for its arguments."""
    send(backend_url, request(uri, size_wh, [at], [region_id]))


def health_checks(backend_url: str, lasts_s: float) -> list[float]:
    """The seconds that each health check took; one at a time, at least one."""

    def check() -> None:
        requests.get(backend_url + "/health", timeout=5).raise_for_status()

    taken, ends = [seconds(check)], time.perf_counter() + lasts_s
    while time.perf_counter() < ends:
        time.sleep(HEALTH_EVERY_S)
        taken.append(seconds(check))
    return taken
