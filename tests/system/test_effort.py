"""The effort meter beside Label Studio itself: what somebody labels in the page is counted.

In the real page, since only it can tell what becomes of a suggestion's shape on its way through
tick and Submit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from backend.effort_rows import EffortRows
from edgesam_core.bundle import Bundle
from tests import parts, servers
from tests.backend.test_regions import brush_rle
from tests.system.api import LabelStudioApi
from tests.system.conftest import jpeg, photo
from tests.system.test_label_studio_api import mask_of
from tests.system.test_labelling_page import config

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0


@pytest.fixture
def counting(label_studio: servers.RunningLabelStudio, disc_bundle: Path, tmp_path: Path) -> Any:
    """A server of our own, with an empty meter."""
    environ = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.personal_access_token,
        "EDGESAM_DATA_DIR": str(tmp_path / "data"),
        "EDGESAM_CACHE_DIR": str(tmp_path / "cache"),
        "EDGESAM_THREADS": "1",
    }
    with servers.running_backend(disc_bundle, tmp_path, environ) as running:
        yield running, environ


def summary(data: Path, project: int) -> list[tuple[int, bool, float | None]]:
    """(prompts, untouched, IoU) of every region of a project."""
    found = EffortRows(data).of(project)
    return [(r.prompts, r.untouched, r.iou) for known in found for r in known.regions]


def wait_for(data: Path, project: int, expected: list[tuple[int, bool, Any]]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := summary(data, project)) != expected:
        assert time.monotonic() < deadline, f"{found} instead of {expected}"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "kind", ["BrushLabels", "BitmaskLabels", "PolygonLabels", "RectangleLabels"]
)
def test_a_suggestion_that_is_accepted_in_the_page_is_one_prompt_untouched(
    labelling: Any, api: LabelStudioApi, counting: Any, tmp_path: Path, kind: str
) -> None:
    backend, _ = counting
    project = api.create_project("effort", config(kind))
    task = api.upload(project, "cup.jpg", jpeg(photo("coffee.png")))
    assert api.attach(project, backend.url).status_code == 201
    labelling.open_task(project, task)
    labelling.click("Cat", 400, 150)
    labelling.accept()
    labelling.submit()
    wait_for(tmp_path / "data", project, [(1, True, 1.0)])


def test_edited_updated_and_deleted_annotations_are_counted_as_they_are_now(
    labelling: Any, api: LabelStudioApi, counting: Any, disc_bundle: Path, tmp_path: Path
) -> None:
    backend, environ = counting
    data, version = tmp_path / "data", Bundle.open(disc_bundle).manifest.version
    project = api.create_project("effort, edited", config("BrushLabels"))
    task = api.upload(project, "cup.jpg", jpeg(photo("coffee.png")))
    assert api.attach(project, backend.url).status_code == 201
    labelling.open_task(project, task)
    labelling.click("Cat", 380, 150)
    labelling.click("Cat", 420, 150)
    labelling.accept()
    labelling.submit()
    wait_for(data, project, [(2, True, 1.0)])

    (annotation,) = api.annotations(task)
    (region,) = annotation["result"]
    mask = mask_of(region)
    half = mask.copy()
    half[np.flatnonzero(mask.any(axis=1)).mean().astype(int) :] = False
    rle = {"format": "rle", "rle": brush_rle(half), "brushlabels": ["Cat"]}
    edited = {**region, "value": rle, "origin": "prediction-changed"}
    path = f"/api/annotations/{annotation['id']}/"
    api.call("PATCH", path, json={"result": [edited]})
    iou = pytest.approx(half.sum() / mask.sum(), abs=1e-3)
    wait_for(data, project, [(2, False, iou)])

    text = requests.get(backend.url + "/metrics", timeout=60).text
    assert f'edgesam_effort_regions{{version="{version}"}} 1.0' in text
    assert f'edgesam_effort_prompts{{version="{version}"}} 2.0' in text

    # The same, from Label Studio's annotations alone.
    anew = os.environ | environ | {"EDGESAM_DATA_DIR": str(tmp_path / "anew")}
    anew["MODEL"] = str(disc_bundle)
    command = [sys.executable, "-m", "backend", "effort", str(project)]
    told = subprocess.run(
        command, cwd=parts.REPOSITORY, env=anew, capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0, told.stderr
    assert summary(tmp_path / "anew", project) == [(2, False, iou)]

    api.call("DELETE", path)
    wait_for(data, project, [])
