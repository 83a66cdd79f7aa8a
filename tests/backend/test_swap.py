"""A promotion in a running server, with annotators who click all the while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from backend.jobs import EncodeRequest
from backend.model import ModelSettings
from backend.service import Service
from backend.settings import Settings
from backend.swap import Swaps
from backend.versions import VersionSettings
from edgesam_core.errors import BundleError
from tests.backend.conftest import MakeClient, body, keypoint, mask_of, picture_uri
from tests.backend.disc_bundle import write_disc_bundle
from tests.backend.spies import count_calls
from tests.backend.workers import wait_until

PROJECT = 3


@pytest.fixture
def app(make_client: MakeClient, tmp_path: Path) -> Iterator[Flask]:
    app = make_client(versions=VersionSettings(tmp_path / "data")).application
    yield app
    service_of(app).stop()


@pytest.fixture
def larger(app: Flask, tmp_path: Path) -> str:
    """A version with larger discs, added for the project and not promoted."""
    bundle = write_disc_bundle(tmp_path / "trained", radius_px=60.0)
    return service_of(app).versions.add(PROJECT, bundle, "trained by a test")


def service_of(app: Flask) -> Service:
    service: Service = app.extensions["edgesam"]
    return service


def is_served(service: Service, version: str) -> bool:
    return service.models.of(PROJECT).version == version


def click(app: Flask, *, project: int = PROJECT, grey: int = 120) -> dict[str, Any]:
    sent = body(keypoint(50, 50), image=picture_uri(grey=grey))
    response = app.test_client().post("/predict", json={**sent, "project": f"{project}.17"})
    assert response.status_code == 200, response.json
    assert response.json is not None
    return dict(response.json)


def area(answer: dict[str, Any]) -> float:
    return float(mask_of(answer["results"][0]["result"][0]).mean())


def test_a_promotion_under_clicks_fails_none_and_mixes_none(app: Flask, larger: str) -> None:
    service, own = service_of(app), click(app)["model_version"]
    areas = {own: area(click(app))}
    service.swaps.start()
    answers: list[dict[str, Any]] = []

    def annotate(_: int) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answers.append(click(app))
            if answers[-1]["model_version"] == larger:
                return

    with ThreadPoolExecutor(4) as pool:
        annotators = pool.map(annotate, range(4))
        wait_until(lambda: len(answers) > 8, "the first answers")
        service.versions.promote(PROJECT, larger, "better")
        list(annotators)
    areas[larger] = area(click(app))
    assert areas[larger] > 2 * areas[own]
    for answer in answers:
        (result,) = answer["results"]
        (region,) = result["result"]
        version = answer["model_version"]
        assert version == result["model_version"] == region["meta"]["edgesam"]["version"]
        assert area(answer) == areas[version]
    assert {answer["model_version"] for answer in answers} == {own, larger}


def test_other_projects_keep_the_servers_own_model(app: Flask, larger: str) -> None:
    service_of(app).versions.promote(PROJECT, larger, "better")
    assert click(app)["model_version"] == larger
    assert click(app, project=4)["model_version"] != larger


def test_images_that_are_worked_on_are_warm_when_the_new_version_begins(
    app: Flask, larger: str
) -> None:
    service = service_of(app)
    for grey in (60, 120):
        click(app, grey=grey)
    encoded = count_calls(service.models.version(larger).segmenter(), "embed")
    service.versions.promote(PROJECT, larger, "better")
    service.swaps.look()
    assert encoded() == 2
    for grey in (60, 120):
        assert click(app, grey=grey)["model_version"] == larger
    assert encoded() == 2


def test_after_a_rollback_the_old_embeddings_are_still_warm(app: Flask, larger: str) -> None:
    service = service_of(app)
    click(app)
    encoded = count_calls(service.models.own.segmenter(), "embed")
    service.versions.promote(PROJECT, larger, "better")
    service.swaps.look()
    click(app)
    service.versions.rollback(PROJECT, "worse")
    service.swaps.look()
    assert click(app)["model_version"] == service.models.own.version
    assert encoded() == 0


def test_two_processes_of_one_folder_serve_the_same(
    disc_bundle: Path, larger: str, tmp_path: Path, app: Flask
) -> None:
    other = Service(
        Settings(
            model=ModelSettings(name=str(disc_bundle), threads=1),
            versions=VersionSettings(tmp_path / "data"),
        )
    )
    click(app)
    other.models.of(PROJECT)
    service_of(app).versions.promote(PROJECT, larger, "better")
    try:
        for service in (service_of(app), other):
            service.swaps.start()
            wait_until(partial(is_served, service, larger), "the new version")
    finally:
        other.stop()


def test_when_one_process_has_begun_the_others_follow_before_all_their_images_are_encoded(
    app: Flask, larger: str
) -> None:
    service = service_of(app)
    click(app)
    answered_by: list[str] = []

    def warm(project_id: int, version: str) -> Iterator[str]:
        for image in ("first", "second", "third"):
            answered_by.append(service.models.of(PROJECT).version)
            if image == "second":
                service.versions.begin(PROJECT, larger)  # as another process would
            yield image

    slow = Swaps(service.models, service.versions, warm)
    own = service.models.own.version
    for _ in range(2):  # what was begun once does not count for a later promotion
        service.versions.promote(PROJECT, larger, "better")
        slow.look()
        assert answered_by == [own, own, larger]
        answered_by.clear()
        service.versions.rollback(PROJECT, "worse")
        service.swaps.look()
        assert is_served(service, own)


def test_a_worker_encodes_for_versions_that_projects_are_served(app: Flask, larger: str) -> None:
    service = service_of(app)
    request = EncodeRequest(picture_uri(), 4, None, larger, False)
    encoded = count_calls(service.models.version(larger).segmenter(), "embed")
    assert [service.encoding.job(request) for _ in range(2)] == ["miss", "hit"]
    assert encoded() == 1
    with pytest.raises(BundleError, match="same MODEL"):
        service.encoding.job(replace(request, version="0123456789ab"))
