"""An annotator who takes one task after the other, against Label Studio itself.

The calls are those of the labelling page: the next task, a click, Submit. Nobody pauses to look at
the picture, so that whoever does has more time than is measured here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from backend.label_studio import LabelStudioClient, LabelStudioSettings
from backend.metrics import CACHE_OUTCOMES, PREFETCH_OUTCOMES
from tests import parts, servers
from tests.backend.conftest import BRUSH_CONFIG, keypoint, picture_uri
from tests.backend.workers import wait_until
from tests.system.api import LabelStudioApi
from tests.system.conftest import jpeg
from tests.system.test_label_studio_api import predict_lines

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 320, 240


def pictures(count: int) -> list[tuple[str, tuple[str, bytes]]]:
    """Discs on noise as files to be uploaded, no two alike."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    files = []
    for index in range(count):
        pixels = random.integers(60, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        pixels[np.hypot(x - WIDTH / 2, y - HEIGHT / 2) < 50] = random.integers(130, 250, 3)
        files.append((f"file{index}", (f"{index:03}.jpg", jpeg(Image.fromarray(pixels)))))
    return files


def new_project(api: LabelStudioApi, title: str, count: int) -> tuple[int, list[int]]:
    """A project with so many uploaded pictures, and its tasks."""
    project = api.create_project(title, BRUSH_CONFIG)
    path = f"/api/projects/{project}/import?return_task_ids=true"
    tasks: list[int] = []
    for first in range(0, count, 50):
        tasks += api.call("POST", path, files=pictures(count)[first : first + 50])["task_ids"]
    return project, tasks


def click(api: LabelStudioApi, backend_id: int, task: int, height: int = HEIGHT) -> None:
    region = {**keypoint(50, 50), "original_width": WIDTH, "original_height": height}
    assert "errors" not in api.click(backend_id, task, region)


def outcomes(backend: servers.RunningBackend, counter: str, known: tuple[str, ...]) -> Counter[str]:
    """How often each outcome was counted on the metrics page."""
    page = requests.get(f"{backend.url}/metrics", timeout=30).text
    found = re.findall(rf'^edgesam_{counter}_total{{outcome="(\w+)"}} ([\d.]+)$', page, re.M)
    counts = Counter({outcome: int(float(count)) for outcome, count in found})
    assert counts.keys() == set(known)
    return counts


def serve(
    start_backend: Callable[..., servers.RunningBackend],
    label_studio: servers.RunningLabelStudio,
    model: Any,
    **environ: str,
) -> servers.RunningBackend:
    return start_backend(
        model,
        {
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": label_studio.personal_access_token,
            **environ,
        },
    )


def test_who_labels_100_tasks_in_sequence_finds_95_of_them_warm(
    api, label_studio, default_model, start_backend
):
    project, tasks = new_project(api, "one after the other", 100)
    backend = serve(start_backend, label_studio, default_model)
    backend_id = api.attach(project, backend.url).json()["id"]
    served = []
    for _ in tasks:
        task = api.call("POST", f"/api/dm/actions?id=next_task&project={project}", json={})["id"]
        served.append(task)
        click(api, backend_id, task)
        api.call("POST", f"/api/tasks/{task}/annotations", json={"result": []})
    assert served == tasks
    found = outcomes(backend, "embedding_cache", CACHE_OUTCOMES)
    ahead = outcomes(backend, "prefetches", PREFETCH_OUTCOMES)
    assert found.total() == 100
    assert found["hit"] >= 95
    assert ahead["failed"] == ahead["dropped"] == 0


def test_asking_for_the_next_tasks_leaves_out_labelled_ones_and_has_no_predictions_made(
    api, label_studio, backend
):
    """Where a project retrieves predictions automatically, most lists would ask us for them."""
    project, tasks = new_project(api, "next tasks", 6)
    api.attach(project, backend.url)
    api.call("PATCH", f"/api/projects/{project}", json={"evaluate_predictions_automatically": True})
    api.call("POST", f"/api/tasks/{tasks[2]}/annotations", json={"result": []})
    api.call(
        "POST", f"/api/tasks/{tasks[3]}/annotations", json={"result": [], "was_cancelled": True}
    )
    client = LabelStudioClient(
        LabelStudioSettings(label_studio.url, label_studio.personal_access_token)
    )
    found = client.tasks(project, after=tasks[0], count=3)
    assert [task["id"] for task in found] == [tasks[1], tasks[3], tasks[4]]
    assert found[0]["data"]["image"].startswith("/data/upload/")
    whole = client.tasks(project, count=100, unlabelled=False)
    assert [task["id"] for task in whole] == tasks
    assert client.project(project)["task_number"] == 6
    assert predict_lines(backend, project) == []


def test_predictions_of_300_tasks_are_retrieved_and_a_click_comes_in_between(
    api, label_studio, disc_bundle, start_backend
):
    """Label Studio waits 100 s for all of them together."""
    project = api.create_project("many predictions", BRUSH_CONFIG)
    pictures = [{"image": picture_uri(WIDTH, HEIGHT + n // 100, grey=n % 100)} for n in range(300)]
    tasks = api.import_tasks(project, *pictures)
    backend = serve(start_backend, label_studio, disc_bundle)
    backend_id = api.attach(project, backend.url).json()["id"]
    action = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}"
    api.call("POST", action, json={"selectedItems": {"all": True, "excluded": []}})
    click(api, backend_id, tasks[-1], height=HEIGHT + 2)
    listed = api.call("GET", f"/api/tasks?project={project}&page_size=500&fields=all")["tasks"]
    assert [len(task["predictions"]) for task in listed] == [1] * 300
    assert {str(task["predictions"][0]["result"]) for task in listed} == {"[]"}
    asked = [line for line in predict_lines(backend, project) if "(300)" in line]
    assert len(asked) == 1

    def encoded() -> int:
        return outcomes(backend, "prefetches", PREFETCH_OUTCOMES)["encoded"]

    wait_until(lambda: encoded() >= 299, "the encodes of all")  # the click may have been quicker


def test_a_project_that_was_precomputed_is_warm_for_a_server(
    api, label_studio, disc_bundle, start_backend, tmp_path
):
    project, tasks = new_project(api, "the night before", 12)
    (broken,) = api.import_tasks(project, {"image": "/data/upload/1/no-such.jpg"})
    environ = {
        "PATH": os.environ["PATH"],
        "MODEL": str(disc_bundle),
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.personal_access_token,
        "EDGESAM_CACHE_DIR": str(tmp_path / "cache"),
        "EDGESAM_IMAGE_CACHE_BYTES": "0",
    }

    def precompute() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "backend", "precompute", str(project)]
        return subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=300, cwd=parts.REPOSITORY
        )

    told = precompute()
    assert told.returncode == 1
    assert "12 images encoded, the others were there; 1 tasks failed." in told.stdout, told.stderr
    assert "13/13" in told.stderr  # the bar
    assert f"Task {broken}: " in told.stdout + told.stderr
    api.call("DELETE", f"/api/tasks/{broken}")
    told = precompute()
    assert (told.returncode, told.stdout.splitlines()[-1]) == (
        0,
        "0 images encoded, the others were there; 0 tasks failed.",
    )

    cache = {"EDGESAM_CACHE_DIR": str(tmp_path / "cache"), "EDGESAM_PREFETCH_TASKS": "0"}
    backend = serve(start_backend, label_studio, disc_bundle, **cache)
    backend_id = api.attach(project, backend.url).json()["id"]
    for task in reversed(tasks):
        click(api, backend_id, task)
    assert outcomes(backend, "embedding_cache", CACHE_OUTCOMES) == {
        "hit": 12,
        "miss": 0,
        "joined": 0,
    }
    assert outcomes(backend, "prefetches", PREFETCH_OUTCOMES)["encoded"] == 0
