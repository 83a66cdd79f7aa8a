"""What ``make soak`` clicks on: pictures that this file draws, and the masks that are right there.

No two pictures have the same size or form, nor anything in the same place, so that the mask of
another picture is noticed, and an encoder without padding has another size to compute every time.
What is right was answered by a server of its own, to one click after another.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from backend.app import create_app
from backend.images import ImageSettings
from backend.logs import LogSettings
from backend.refinement import RefinementSettings
from backend.settings import Settings
from bench.annotator import request
from edgesam_core.errors import PromptError
from edgesam_core.rle import brush_rle_to_mask

OBJECTS = 4
CORRECTION = (0.02, -0.02)
"""From the first click on an object to the second."""

SAME_IOU = 0.7
"""Of masks of one prompt, which differ a little by what was kept of earlier clicks."""


@dataclass(frozen=True)
class Picture:
    """A picture that this file drew."""

    png: bytes
    size_wh: tuple[int, int]
    objects: tuple[tuple[float, float], ...]
    # a point on each, (x, y) as shares of the picture


@dataclass(frozen=True)
class Drawn:
    """An object of a picture, and what is right to answer."""

    uri: str
    size_wh: tuple[int, int]
    points: tuple[tuple[float, float], ...]
    # (x, y) as shares of the picture, in the order of the clicks; the second is a correction
    right: tuple[tuple[list[int], ...], ...] = ()
    # RLEs of the masks that are right after the first click, after the second one: with or without
    # the logits of the first

    def request(self, region_ids: Sequence[str]) -> dict[str, Any]:
        """The body of /predict for as many clicks as there are ids."""
        return request(self.uri, self.size_wh, self.points[: len(region_ids)], region_ids)


def draw(number: int) -> Picture:
    """A picture of coloured shapes, unlike all others in size, places and colours."""
    rng = random.Random(number)
    long_side, short_side = 640 + 40 * number, 480 - 24 * number  # 4:3 to 3:1
    upright = number % 2 == 1
    size_wh = width, height = (short_side, long_side) if upright else (long_side, short_side)
    corners = rng.sample([(x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)], OBJECTS)
    objects = tuple((x + rng.uniform(-0.1, 0.1), y + rng.uniform(-0.1, 0.1)) for x, y in corners)
    image = Image.new("RGB", size_wh, tuple(rng.randrange(40, 90) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for x, y in objects:
        cx, cy = x * width, y * height
        rx, ry = width * rng.uniform(0.06, 0.14), height * rng.uniform(0.06, 0.14)
        shape = rng.choice((pen.ellipse, pen.rectangle))
        colour = tuple(rng.randrange(120, 256) for _ in range(3))
        shape((cx - rx, cy - ry, cx + rx, cy + ry), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(buffer.getvalue(), size_wh, objects)


def right_answers(host: str, pictures: Sequence[Picture]) -> list[Drawn]:
    """All objects of all pictures, with the masks that a server of their own gives.

    Args:
        host: Where the pictures lie, named by their places in the sequence (annotator.py).
        pictures: All of them.
    """
    settings = Settings(
        images=ImageSettings(allowed_hosts=(host,)), logs=LogSettings(level="ERROR")
    )
    forgetful = replace(settings, refinement=RefinementSettings(cache_bytes=0))
    clients = [create_app(each).test_client() for each in (settings, forgetful)]
    known = []
    for number, picture in enumerate(pictures):
        for x, y in picture.objects:
            points = ((x, y), (x + CORRECTION[0], y + CORRECTION[1]))
            drawn = Drawn(f"http://{host}/{number}/soak.png", picture.size_wh, points)
            after: tuple[list[list[int]], ...] = ([], [])
            for client in clients:
                for count, masks in enumerate(after, start=1):
                    answer = client.post("/predict", json=drawn.request("ab"[:count]))
                    assert answer.status_code == 200, answer.text
                    masks.append(mask_in(answer.get_json()))
            known.append(replace(drawn, right=tuple(map(tuple, after))))
    return known


def mask_in(answer: Mapping[str, Any]) -> list[int]:
    """The RLE in an answer of /predict."""
    rle: list[int] = answer["results"][0]["result"][0]["value"]["rle"]
    return rle


def is_right(drawn: Drawn, count: int, rle: list[int]) -> bool:
    """Whether a mask after `count` clicks is the one of this picture and prompt."""
    right = drawn.right[count - 1]
    if rle in right:
        return True
    size_hw = drawn.size_wh[::-1]
    try:
        mask = brush_rle_to_mask(rle, size_hw)
    except PromptError:  # of another size: somebody else's
        return False
    return any(
        np.count_nonzero(mask & other) >= SAME_IOU * np.count_nonzero(mask | other)
        for other in (brush_rle_to_mask(one, size_hw) for one in right)
    )
