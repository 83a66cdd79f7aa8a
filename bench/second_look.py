"""What the second look costs: clicks on small objects, HTTP included, with it and without it.

An annotator goes through a picture of small discs: a click on each, then a second click on it. Once
with half a second before every click, as people need to aim; once without any pause, where the
crop of the last object is still being encoded when the next click comes. Two real servers answer,
one with `EDGESAM_SECOND_LOOK=on` (ours), one with `off` (the peer).

    python -m bench second_look
"""

from __future__ import annotations

import io
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from bench.annotator import click, image_host, request, send
from bench.timing import Times, seconds
from tests.servers import running_backend

SIZE_WH = (1200, 900)
RADIUS_PX = 24
"""Of a disc: 0.17 % of the picture."""

DISCS = [(x, y) for y in (150, 350, 550, 750) for x in (150, 375, 600, 825, 1050)]
PAUSES_S = {"with a pause": 0.5, "in a hurry": 0.0}


def run() -> list[dict[str, Any]]:
    """First and next clicks, for both kinds of annotators."""
    with tempfile.TemporaryDirectory() as name, image_host({"discs": picture()}) as host:
        times: dict[tuple[str, str], tuple[Times, Times]] = {}
        for mode in ("on", "off"):
            folder = Path(name) / mode
            folder.mkdir()
            environ = {"EDGESAM_IMAGE_HOSTS": host, "EDGESAM_SECOND_LOOK": mode}
            with running_backend("default", folder, environ) as server:
                for pace, pause_s in PAUSES_S.items():
                    uri = f"http://{host}/discs/{pace.split()[-1]}.jpg"
                    click(server.url, uri, SIZE_WH)  # the picture is encoded
                    times[mode, pace] = annotate(server.url, uri, pause_s)
    return [
        {
            "name": f"{which} click on a small object, {pace}",
            "ours_ms": times["on", pace][index].median_ms,
            "p95_ms": times["on", pace][index].p95_ms,
            "peer_ms": times["off", pace][index].median_ms,
            "peer": "without the second look",
        }
        for pace in PAUSES_S
        for index, which in enumerate(("first", "next"))
    ]


def annotate(url: str, uri: str, pause_s: float) -> tuple[Times, Times]:
    """Two clicks on every disc: what the first ones took, and the second ones."""
    width, height = SIZE_WH
    taken: tuple[list[float], list[float]] = ([], [])
    for number, (x, y) in enumerate(DISCS):
        points = [(x / width, y / height), ((x + RADIUS_PX // 2) / width, y / height)]
        ids = [f"{number}-first", f"{number}-next"]
        for count in (1, 2):
            time.sleep(pause_s)
            body = request(uri, SIZE_WH, points[:count], ids[:count])
            taken[count - 1].append(seconds(partial(send, url, body)))
    return Times.of(taken[0]), Times.of(taken[1])


def picture() -> bytes:
    """Orange discs on grey, as a JPEG."""
    image = Image.new("RGB", SIZE_WH, (90, 96, 92))
    draw = ImageDraw.Draw(image)
    for x, y in DISCS:
        corners = (x - RADIUS_PX, y - RADIUS_PX, x + RADIUS_PX, y + RADIUS_PX)
        draw.ellipse(corners, fill=(230, 140, 40))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
