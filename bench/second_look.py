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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import requests
from PIL import Image, ImageDraw

from bench.annotator import LABEL_CONFIG, image_host
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
                    click(server.url, uri, [(5, 5)])  # the picture is encoded
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
    taken: tuple[list[float], list[float]] = ([], [])
    for x, y in DISCS:
        for count in (1, 2):
            time.sleep(pause_s)
            points = [(x, y), (x + RADIUS_PX // 2, y)][:count]
            taken[count - 1].append(seconds(partial(click, url, uri, points)))
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


def click(url: str, uri: str, points: Sequence[tuple[float, float]]) -> None:
    """Positive clicks on one object, (x, y) in pixels; the answer must hold a region."""
    width, height = SIZE_WH
    drawn = [
        {
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"x": 100 * x / width, "y": 100 * y / height, "keypointlabels": ["Object"]},
            "is_positive": True,
            "id": f"click{x:.0f}-{y:.0f}",
            "from_name": "click",
            "to_name": "image",
            "type": "keypointlabels",
            "origin": "manual",
        }
        for x, y in points
    ]
    body = {
        "tasks": [{"id": 1, "data": {"image": uri}}],
        "project": "1.1700000000",
        "label_config": LABEL_CONFIG,
        "params": {"context": {"result": drawn}},
    }
    answer = requests.post(url + "/predict", json=body, timeout=60)
    answer.raise_for_status()
    assert answer.json()["results"][0]["result"], "a click was answered without a region"
