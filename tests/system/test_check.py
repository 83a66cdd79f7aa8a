"""``python -m backend check`` beside Label Studio itself: all is well, then one thing missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from backend.doctor import examine
from backend.images import ImageSettings
from backend.label_studio import LabelStudioSettings
from backend.queues import QueueSettings
from tests import servers
from tests.backend.conftest import BRUSH_CONFIG, picture_bytes
from tests.backend.hosts import Host, running

pytestmark = pytest.mark.slow

Complaints = Callable[..., list[str]]


@pytest.fixture
def complaints(label_studio: servers.RunningLabelStudio) -> Complaints:
    """A function (project, settings by name): the sentences of the steps that cannot be gone."""
    settings = LabelStudioSettings(label_studio.url, label_studio.personal_access_token)

    def examined(project_id: int | None, **changed: Any) -> list[str]:
        findings = examine(
            replace(settings, **changed),
            ImageSettings(),
            QueueSettings(),
            open_model=lambda: "disc",
            project_id=project_id,
        )
        return [finding.sentence for finding in findings if not finding.is_good]

    return examined


def test_command_finds_nothing_wrong_with_a_good_set_up(
    api, backend, label_studio, disc_bundle, tmp_path
):
    project = api.create_project("good", BRUSH_CONFIG)
    api.upload(project, "picture.png", picture_bytes(320, 200))
    api.attach(project, backend.url)
    told = subprocess.run(
        [sys.executable, "-m", "backend", "check", "--project", str(project)],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "MODEL": str(disc_bundle),
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": label_studio.personal_access_token,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (told.returncode, told.stderr) == (0, "")
    lines = told.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 6
    assert lines[2].endswith("accepts the personal access token in LABEL_STUDIO_API_KEY.")
    assert lines[3].endswith(
        "has an interactive model attached (EdgeSAM), and Label Studio reaches it."
    )
    assert lines[5].endswith("can be fetched and read (320 x 200 pixels).")


def test_tokens_that_do_not_work_are_told_with_the_cure(api, complaints, label_studio):
    project = api.create_project("tokens", BRUSH_CONFIG)
    (no_token,) = complaints(project, api_key=None)
    assert no_token.startswith("Label Studio asks for a token.")
    personal = label_studio.personal_access_token
    (cut_off,) = complaints(project, api_key=personal[:-4])
    assert "was cut off" in cut_off
    settings = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False}
    try:
        api.call("POST", "/api/jwt/settings", json=settings)
        (legacy,) = complaints(project, api_key=label_studio.legacy_token)
    finally:
        api.call("POST", "/api/jwt/settings", json=settings | {"legacy_api_tokens_enabled": True})
    assert legacy.startswith("Label Studio no longer accepts legacy tokens")
    assert not any(
        "token" in said for said in complaints(project, api_key=label_studio.legacy_token)
    )
    (wrong,) = complaints(project, api_key="0" * 40)
    assert wrong.startswith("Label Studio refused the legacy token")


def test_what_is_missing_is_told_step_by_step(api, backend, complaints):
    closed = f"http://127.0.0.1:{servers.free_port()}"
    (unreachable,) = complaints(None, url=closed)
    assert unreachable.startswith("Label Studio cannot be asked at LABEL_STUDIO_URL.")
    (unknown,) = complaints(987654)
    assert "no project 987654" in unknown

    without_smart = BRUSH_CONFIG.replace(' smart="true"', "")
    project = api.create_project("nothing yet", without_smart)
    no_model, no_tool, no_task = complaints(project)
    assert no_model.endswith(
        "enter the address of this backend and switch on interactive preannotations."
    )
    assert no_tool.endswith('Add smart="true" to its KeyPointLabels and RectangleLabels.')
    assert no_task.endswith("has no tasks. Import an image.")

    api.call("PATCH", f"/api/projects/{project}", json={"label_config": BRUSH_CONFIG})
    api.upload(project, "picture.png", picture_bytes())
    attached = api.attach(project, backend.url, is_interactive=False).json()
    (not_interactive,) = complaints(project)
    assert "is not interactive, so no click reaches it" in not_interactive
    # Label Studio 1.23.2 fails over a change that does not name project and address again.
    change = {"project": project, "url": backend.url, "is_interactive": True}
    api.call("PATCH", f"/api/ml/{attached['id']}", json=change)
    assert complaints(project) == []


def test_backend_that_label_studio_no_longer_reaches_is_told(api, complaints):
    project = api.create_project("gone", BRUSH_CONFIG)
    api.upload(project, "picture.png", picture_bytes())
    host = Host()
    host.answers["/health"] = lambda request: request.reply_json(200, {"status": "UP"})
    host.answers["/setup"] = lambda request: request.reply_json(200, {"model_version": "1"})
    with running(host):
        assert api.attach(project, host.url).status_code == 201
    (gone,) = complaints(project)
    assert gone.startswith(f"Label Studio cannot reach the model (EdgeSAM) of project {project}.")
    assert "ML_BLOCK_LOCAL_IP=false" in gone
