"""Fixtures for everyone: real things, each started once and only where a test asks for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests import parts, servers

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Before PyTorch is imported: with one thread an export takes seconds on a busy machine; several
# wait for the slowest of them, and it took minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

OURS = ("EDGESAM_", "LABEL_STUDIO_", "BASIC_AUTH_", "REDIS_", "HF_")
NAMES = {
    "HOST", "PORT", "MODEL", "MODEL_DIR", "LOG_LEVEL", "THREADS", "HTTP_PROXY", "HTTPS_PROXY",
    "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "MAKEFLAGS", "MAKELEVEL",
    "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS",
}  # fmt: skip


@pytest.fixture(autouse=True)
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches a test."""
    for name in os.environ:
        if name in NAMES or (name.startswith(OURS) and name != parts.LABEL_STUDIO_PYTHON):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared: the reference's answers and Label Studio's recorded requests."""
    return parts.find_shared()


@pytest.fixture(scope="session")
def parity_inputs(shared: Path) -> ModuleType:
    """The parity fixtures' own recipe: images, prompts, `state_dict()`, `uniform()`."""
    sys.path.insert(0, str(shared / "parity"))
    try:
        import fixture_inputs
        import make_state_dict
    finally:
        sys.path.pop(0)
    fixture_inputs.state_dict = make_state_dict.build
    fixture_inputs.uniform = make_state_dict.uniform
    module: ModuleType = fixture_inputs
    return module


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that is quick to run: EdgeSAM with random weights for 256 px, really exported."""
    import torch

    from edgesam_core.export.write_bundle import write_bundle
    from edgesam_core.nn.edge_sam import EdgeSam

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(EdgeSam().eval(), folder, name="tiny", input_size=256)
    return folder


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that nothing listens on."""
    return servers.free_port()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis; a test that cares about what is in it flushes it first."""
    program = parts.find_redis_server()
    with servers.running_redis(program, tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def label_studio(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.RunningLabelStudio]:
    """Label Studio itself, one for the whole session: make a project of your own in it."""
    python = parts.find_label_studio_python()
    data = tmp_path_factory.mktemp("label_studio")
    with servers.running_label_studio(python, shared, data) as running:
        yield running


@pytest.fixture
def start_backend(tmp_path: Path) -> Iterator[Callable[..., servers.RunningBackend]]:
    """A function (bundle, environ) that serves a bundle under gunicorn until the test ends."""
    with ExitStack() as stack:

        def start(
            model: Path | str, environ: Mapping[str, str] | None = None
        ) -> servers.RunningBackend:
            return stack.enter_context(servers.running_backend(model, tmp_path, environ))

        yield start


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless Chromium that asks the internet for nothing."""
    program = parts.find_chromium()
    from playwright.sync_api import sync_playwright

    quiet = [
        "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A fresh page with cookies and storage of its own, 1400 x 900."""
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    yield context.new_page()
    context.close()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """A test that takes one of these fixtures has its marker without saying so."""
    markers = {"redis_server": "redis", "chromium": "browser", "label_studio": "labelstudio"}
    for item in items:
        for fixture, marker in markers.items():
            if fixture in item.fixturenames:
                item.add_marker(marker)
