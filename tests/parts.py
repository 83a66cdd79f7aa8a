"""What a test may need of the machine beyond the repository, and what its absence means.

A user's clone lacks some of it: the test is skipped and the summary says why. Where ``CI=true``
everything must be there, and the same absence is a failure. Fixtures in conftest.py call these;
a test module needs this file itself only for ``shared_params``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
LABEL_STUDIO_PYTHON = "EDGESAM_TEST_LABEL_STUDIO"
"""Environment variable: the Python of an environment in which Label Studio is installed."""


def missing(what: str) -> NoReturn:
    """Skip the running test because a part is missing; fail it where CI=true."""
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"{what} (CI=true: every part must be there)", pytrace=False)
    pytest.skip(what)


def require(part: str | Path | None, what: str) -> str:
    """The path of a program or folder that exists, or no further step in this test."""
    if part is None or not Path(part).exists():
        missing(what)
    return str(part)


def find_redis_server() -> str:
    """Path of redis-server."""
    return require(shutil.which("redis-server"), "redis-server is not installed")


def find_chromium() -> str:
    """Path of Debian's Chromium or of a Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    return require(found, "Chromium is not installed")


def find_label_studio_python() -> str:
    """Path of the Python beside which Label Studio is installed."""
    beside = REPOSITORY / ".venv-label-studio" / "bin" / "python"
    given = os.environ.get(LABEL_STUDIO_PYTHON)
    return require(
        beside if beside.exists() else given,
        f"Label Studio is not installed (make setup-label-studio, or name it in "
        f"{LABEL_STUDIO_PYTHON})",
    )


def find_shared() -> Path:
    """The folder of facts and recordings beside the checkout."""
    return Path(require(SHARED, "../shared with the reference recordings is absent"))


def shared_params(pattern: str) -> list[Any]:
    """One parameter per file of ../shared that matches; one that stands for all where it is absent.

    The test must also take the ``shared`` fixture, which skips (or fails) that one.

    >>> @pytest.mark.parametrize("recording", shared_params("label_studio/recorded/*.json"))
    ... def test_every_recorded_request_is_answered(shared, recording): ...
    """
    found = [pytest.param(path, id=path.stem) for path in sorted(SHARED.glob(pattern))]
    return found or [pytest.param(None, id="absent")]
