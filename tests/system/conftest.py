"""Label Studio, our server beside it, and a browser in which somebody is logged in."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests import parts, servers
from tests.backend.disc_bundle import write_disc_bundle
from tests.system.api import LabelStudioApi
from tests.system.page import LabellingPage

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SCREENSHOTS = os.environ.get("EDGESAM_TEST_SCREENSHOTS")
"""Folder for the pictures of the documentation; read here, before the environment is cleaned."""


@pytest.fixture(scope="session")
def api(label_studio: servers.RunningLabelStudio) -> Iterator[LabelStudioApi]:
    api = LabelStudioApi.of(label_studio)
    yield api
    api.close()


@pytest.fixture(scope="session")
def disc_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose masks are known: discs around clicks, boxes filled."""
    return write_disc_bundle(tmp_path_factory.mktemp("bundles") / "disc")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The bundle that the repository carries."""
    folder = parts.REPOSITORY / "models" / "default"
    parts.require(folder / "manifest.json", "models/default is absent")
    return folder


@pytest.fixture(scope="session")
def backend(
    label_studio: servers.RunningLabelStudio,
    disc_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[servers.RunningBackend]:
    """Our server with the discs and a token, for every test that needs no settings of its own."""
    environ = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.personal_access_token,
    }
    folder = tmp_path_factory.mktemp("backend")
    with servers.running_backend(disc_bundle, folder, environ) as running:
        yield running


@pytest.fixture(scope="module")
def labelling(
    chromium: Browser, label_studio: servers.RunningLabelStudio
) -> Iterator[LabellingPage]:
    """The labelling page in a window that is tall enough for every image, logged in."""
    context = chromium.new_context(viewport={"width": 1600, "height": 1400})
    page = LabellingPage(context.new_page(), label_studio)
    page.log_in()
    yield page
    context.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pictures of the documentation go: away, unless somebody asks for them.

    EDGESAM_TEST_SCREENSHOTS=docs/images python -m pytest tests/system -k screenshots
    """
    if SCREENSHOTS:
        return parts.REPOSITORY / SCREENSHOTS
    return tmp_path_factory.mktemp("pictures")


def photo(name: str) -> Image.Image:
    """A photo of scikit-image's wheel: chelsea.png (the cat), coffee.png, ..."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
        return image.convert("RGB")


def jpeg(image: Image.Image, *, orientation: int | None = None) -> bytes:
    """The image as a JPEG file; with an EXIF orientation its pixels stay as they are."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90, exif=exif)
    return buffer.getvalue()
