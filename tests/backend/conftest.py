"""A running application with a model whose masks are known, and pictures to click on."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from backend.app import create_app
from backend.model import ModelSettings
from backend.settings import Settings
from edgesam_core.rle import brush_rle_to_mask
from tests.backend.disc_bundle import write_disc_bundle
from tests.backend.hosts import Host, Request, running

MakeClient = Callable[..., FlaskClient]


@pytest.fixture(scope="session")
def disc_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disc_bundle(tmp_path_factory.mktemp("bundles") / "disc")


@pytest.fixture
def make_client(disc_bundle: Path) -> MakeClient:
    """A function (settings by section) that makes an application and returns its client."""

    def make(**sections: Any) -> FlaskClient:
        sections.setdefault("model", ModelSettings(name=str(disc_bundle), threads=1))
        app = create_app(Settings(**sections))
        app.testing = False
        return app.test_client()

    return make


@pytest.fixture
def client(make_client: MakeClient) -> FlaskClient:
    return make_client()


@pytest.fixture
def app(client: FlaskClient) -> Flask:
    return client.application


def picture_bytes(width: int = 640, height: int = 480, *, grey: int = 120, **options: Any) -> bytes:
    """A plain picture as PNG bytes, unless `format` says otherwise."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.full((height, width, 3), grey, dtype=np.uint8))
    image.save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


def picture_uri(width: int = 640, height: int = 480, *, grey: int = 120, **options: Any) -> str:
    """The same picture as a data: URI."""
    data = picture_bytes(width, height, grey=grey, **options)
    return "data:image/png;base64," + base64.b64encode(data).decode()


class PictureHost(Host):
    """Stands in for Label Studio's files: the four pictures that the recordings were made with."""

    def handle(self, request: Request) -> None:
        self.seen.append((request.path, dict(request.headers.items())))
        request.reply(200, _recorded_picture(request.path), Content_Type="image/png")


@lru_cache
def _recorded_picture(path: str) -> bytes:
    if "exif6" in path:  # stored lying, shown upright
        exif = Image.Exif()
        exif[0x0112] = 6
        return picture_bytes(640, 480, format="JPEG", exif=exif)
    if "big" in path:
        return picture_bytes(4000, 3000)
    return picture_bytes(300, 200, grey=60) if "p2" in path else picture_bytes(640, 480)


@pytest.fixture(scope="session")
def pictures() -> Iterator[PictureHost]:
    host = PictureHost()
    with running(host):
        yield host


RECORDED_HOSTS = ("http://127.0.0.1:19099", "http://127.0.0.1:18080")


def recorded(shared: Path, name: str, *, host: str = "http://127.0.0.1:1") -> dict[str, Any]:
    """The request of a recording, its pictures at `host`, a shortened data: URI made whole."""
    text = (shared / "label_studio" / "recorded" / f"{name}.json").read_text(encoding="utf-8")
    for old in RECORDED_HOSTS:
        text = text.replace(old, host)
    text = text.replace("data:image/png;base64,<shortened>", picture_uri(160, 120))
    request: dict[str, Any] = json.loads(text)["request"]
    return request


BRUSH_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="tag" toName="image"><Label value="Cat"/><Label value="Dog"/></BrushLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true">
    <Label value="Cat"/><Label value="Dog"/>
  </KeyPointLabels>
  <RectangleLabels name="tag3" toName="image" smart="true">
    <Label value="Cat"/><Label value="Dog"/>
  </RectangleLabels>
</View>
"""


def keypoint(x: float, y: float, *, positive: bool = True, label: str = "Cat", **more: Any) -> Any:
    """A smart keypoint region in percent, as the page sends it."""
    return {
        "original_width": 640,
        "original_height": 480,
        "image_rotation": 0,
        "value": {"x": x, "y": y, "width": 0.2, "labels": [label], "keypointlabels": [label]},
        "is_positive": positive,
        "id": f"kp-{x}-{y}",
        "from_name": "tag2",
        "to_name": "image",
        "type": "keypointlabels",
        "origin": "manual",
        **more,
    }


def rectangle(
    x: float, y: float, w: float, h: float, *, rotation: float = 0, label: str = "Cat", **more: Any
) -> Any:
    """A smart rectangle region in percent, as the page sends it."""
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": rotation}
    return {
        "original_width": 640,
        "original_height": 480,
        "image_rotation": 0,
        "value": {**value, "rectanglelabels": [label]},
        "id": f"box-{x}-{y}",
        "from_name": "tag3",
        "to_name": "image",
        "type": "rectanglelabels",
        "origin": "manual",
        **more,
    }


def body(
    *regions: Any, config: str = BRUSH_CONFIG, image: str | None = None, **more: Any
) -> dict[str, Any]:
    """The body of an interactive /predict for one task."""
    return {
        "tasks": [{"id": 4, "data": {"image": image or picture_uri()}}],
        "project": "1.1795229737",
        "label_config": config,
        "params": {"login": None, "password": None, "context": {"result": list(regions)}},
        **more,
    }


def mask_of(region: dict[str, Any]) -> Any:
    """The mask [H, W] bool of a brush region."""
    size_hw = (region["original_height"], region["original_width"])
    return brush_rle_to_mask(region["value"]["rle"], size_hw)
