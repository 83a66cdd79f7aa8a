"""A project's pictures encoded by a command, seen by a server that starts later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.label_studio import LabelStudioSettings
from backend.model import ModelSettings
from backend.precompute import Precompute, Project, Step
from backend.settings import Settings
from backend.store import StoreSettings
from edgesam_core.errors import RequestError
from tests.backend.conftest import BRUSH_CONFIG
from tests.backend.hosts import Request, running
from tests.backend.test_prefetch import TaskList


class WholeProject(TaskList):
    """The same project where all its tasks are asked for, and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.files["/api/projects/1/"] = lambda request: request.reply_json(
            200, {"id": 1, "label_config": BRUSH_CONFIG, "task_number": len(self.tasks)}
        )

    def list_tasks(self, request: Request) -> None:
        query = self.query_of(request)
        assert len(query["filters"]["items"]) == 1, "labelled tasks, too"
        self.reply_tasks(request, query["filters"]["items"][0]["value"])


@pytest.fixture
def label_studio() -> Iterator[WholeProject]:
    with running(WholeProject()) as host:
        assert isinstance(host, WholeProject)
        yield host


@pytest.fixture
def settings(label_studio: WholeProject, disc_bundle: Path, tmp_path: Path) -> Settings:
    return Settings(
        label_studio=LabelStudioSettings(label_studio.url, label_studio.legacy),
        model=ModelSettings(name=str(disc_bundle), threads=1),
        store=StoreSettings(cache_dir=tmp_path),
    )


def steps(settings: Settings) -> list[Step]:
    precompute = Precompute(settings)
    return list(precompute.encode(precompute.project(1)))


def test_every_task_is_encoded_and_the_second_time_none(
    settings: Settings, label_studio: WholeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.precompute._PAGE", 4)
    assert steps(settings) == [Step(task_id, 1) for task_id in range(1, 11)]
    assert label_studio.questions == [(0, 4), (4, 4), (8, 4), (10, 4)]
    assert steps(settings) == [Step(task_id, 0) for task_id in range(1, 11)]
    assert label_studio.fetched() == list(range(1, 11))


def test_a_picture_that_fails_is_told_and_the_others_are_encoded(
    settings: Settings, label_studio: WholeProject
) -> None:
    label_studio.files["/data/upload/1/3.png"] = lambda request: request.reply(200, b"none")
    found = steps(settings)
    assert [step.encoded for step in found] == [1, 1, 0] + [1] * 7
    assert [step.task_id for step in found if step.complaint] == [3]
    assert "no image that can be read" in str(found[2].complaint)


def test_a_project_that_does_not_exist_is_told(settings: Settings) -> None:
    with pytest.raises(RequestError, match="no project 2"):
        Precompute(settings).project(2)


def test_without_a_store_nothing_is_begun(settings: Settings) -> None:
    with pytest.raises(RequestError, match="EDGESAM_CACHE_DIR"):
        Precompute(replace(settings, store=StoreSettings()))


@pytest.mark.parametrize(
    ("store", "is_short"),
    [
        pytest.param({"store_bytes": 10 * 131_072}, False, id="it just fits"),
        pytest.param({"store_bytes": 10 * 131_072 - 1}, True, id="one too many"),
        pytest.param({"store_bytes": 1, "url": "redis://store"}, False, id="unknown"),
    ],
)
def test_a_store_that_is_too_small_is_told_beforehand(
    settings: Settings, store: dict[str, Any], is_short: bool
) -> None:
    given = replace(settings, store=replace(settings.store, **store))
    shortage = Precompute(given).shortage(Project(1, BRUSH_CONFIG, 10))
    assert (shortage is not None) is is_short
    assert not is_short or "EDGESAM_STORE_BYTES" in str(shortage)
