from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend.__main__ import main
from backend.doctor import Finding, examine
from backend.images import ImageSettings
from backend.label_studio import LabelStudioSettings
from backend.queues import QueueSettings, add_sign_of_life, connect, redis_time
from edgesam_core.errors import BundleError
from tests.backend.hosts import FakeLabelStudio, running
from tests.servers import free_port

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="tag" toName="image"><Label value="Cat"/></BrushLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels>
</View>"""


class SetUp:
    """Label Studio with a project in which all is as it should be, until a test says no."""

    def __init__(self, host: FakeLabelStudio) -> None:
        self.host = host
        self.api_key: str | None = host.personal
        self.project: dict[str, Any] = {"id": 3, "label_config": CONFIG}
        self.projects = [{"id": 9, "label_config": "<View/>"}, self.project]
        self.backends: list[dict[str, Any]] = [
            {"is_interactive": True, "state": "CO", "title": "EdgeSAM"}
        ]
        self.tasks: list[dict[str, Any]] = [{"id": 41, "data": {"image": "/data/upload/3/cat.png"}}]
        picture = io.BytesIO()
        Image.new("RGB", (40, 30), "red").save(picture, "PNG")
        self.picture = picture.getvalue()
        files = host.files
        files["/api/current-user/whoami"] = lambda request: request.reply_json(200, {"id": 1})
        files["/api/projects/"] = lambda request: request.reply_json(
            200, {"results": self.projects}
        )
        files["/api/projects/3/"] = lambda request: request.reply_json(200, self.project)
        files["/api/ml/"] = lambda request: request.reply_json(
            200, self.backends if request.query("project") == "3" else []
        )
        files["/api/tasks/"] = lambda request: request.reply_json(200, {"tasks": self.tasks})
        files["/data/upload/3/cat.png"] = lambda request: request.reply(200, self.picture)

    def findings(self, project_id: int | None = None) -> list[Finding]:
        found = list(
            examine(
                LabelStudioSettings(self.host.url, self.api_key),
                ImageSettings(timeout_s=5),
                QueueSettings(),
                open_model=lambda: "default",
                project_id=project_id,
            )
        )
        for finding in found:
            assert self.host.personal not in finding.sentence
            assert finding.sentence.endswith(".")
        return found

    def only_complaint(self, project_id: int | None = None) -> str:
        """The one finding that is not good, after which nothing is left out."""
        found = self.findings(project_id)
        assert len(found) == 6
        (complaint,) = [finding.sentence for finding in found if not finding.is_good]
        return complaint


@pytest.fixture
def set_up() -> Iterator[SetUp]:
    with running(FakeLabelStudio()) as host:
        assert isinstance(host, FakeLabelStudio)
        yield SetUp(host)


@pytest.mark.parametrize("project_id", [None, 3])
def test_good_set_up_is_all_good(set_up: SetUp, project_id: int | None) -> None:
    found = set_up.findings(project_id)
    assert [finding.is_good for finding in found] == [True] * 6
    sentences = " ".join(finding.sentence for finding in found)
    for word in ("default", "personal access token", "EdgeSAM", "tag2", "(40 x 30 pixels)"):
        assert word in sentences


def test_model_that_does_not_open_is_told_and_the_rest_still_looked_at() -> None:
    def open_model() -> str:
        raise BundleError

    first, second = examine(
        LabelStudioSettings(f"http://127.0.0.1:{free_port()}"),
        ImageSettings(),
        QueueSettings(),
        open_model=open_model,
    )
    assert first == Finding(False, BundleError.default_sentence)
    assert "cannot be asked at LABEL_STUDIO_URL" in second.sentence


def test_refused_token_ends_the_walk(set_up: SetUp) -> None:
    set_up.api_key = None
    *good, last = set_up.findings()
    assert [finding.is_good for finding in good] == [True, True]
    assert not last.is_good
    assert "Personal Access Token" in last.sentence


def test_no_project_at_all(set_up: SetUp) -> None:
    set_up.projects = []
    assert "no project" in set_up.findings()[-1].sentence


def test_unknown_project(set_up: SetUp) -> None:
    last = set_up.findings(77)[-1]
    assert not last.is_good
    assert "no project 77" in last.sentence


def test_no_model_attached(set_up: SetUp) -> None:
    set_up.backends = []
    assert "has no model attached" in set_up.only_complaint(3)


def test_model_that_is_not_interactive(set_up: SetUp) -> None:
    set_up.backends[0]["is_interactive"] = False
    assert "switch on interactive preannotations" in set_up.only_complaint()


@pytest.mark.parametrize("state", ["DI", "ER"])
def test_model_that_label_studio_cannot_reach(set_up: SetUp, state: str) -> None:
    set_up.backends[0]["state"] = state
    complaint = set_up.only_complaint()
    assert "ML_BLOCK_LOCAL_IP=false" in complaint
    assert "SSRF_PROTECTION_ENABLED=false" in complaint


def test_second_interactive_model_is_mentioned(set_up: SetUp) -> None:
    set_up.backends.append({"is_interactive": True, "state": "DI", "title": "old"})
    found = set_up.findings()
    assert all(finding.is_good for finding in found)
    assert "the page asks only this one" in found[3].sentence


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CONFIG.replace(' smart="true"', ""), "has no smart tool"),
        (CONFIG.replace("BrushLabels", "Choices"), "no control that can hold a mask"),
    ],
)
def test_label_config_that_cannot_work(set_up: SetUp, config: str, words: str) -> None:
    set_up.project["label_config"] = config
    assert words in set_up.only_complaint()


def test_project_without_tasks(set_up: SetUp) -> None:
    set_up.tasks = []
    assert "has no tasks" in set_up.only_complaint()


def test_image_that_is_gone(set_up: SetUp) -> None:
    set_up.tasks[0]["data"]["image"] = "/data/upload/3/gone.png"
    assert "has no such file" in set_up.only_complaint()


def test_image_that_is_none(set_up: SetUp) -> None:
    set_up.picture = b"no picture"
    assert "Save it as PNG or JPEG" in set_up.only_complaint()


def test_image_on_a_private_host(set_up: SetUp) -> None:
    set_up.tasks[0]["data"]["image"] = "http://192.168.0.5/cat.png"
    assert "EDGESAM_IMAGE_HOSTS" in set_up.only_complaint()


def test_command_prints_a_line_for_each_step_and_ends_with_one(
    set_up: SetUp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", set_up.host.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", set_up.host.personal)
    monkeypatch.setenv("MODEL", str(tmp_path / "nothing"))
    monkeypatch.setenv("EDGESAM_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["wrong", "ok", "ok", "ok", "ok", "ok"]
    assert str(tmp_path) not in json.dumps(lines)
    assert not (tmp_path / "cache").exists()


def test_command_ends_with_zero_when_all_is_well(
    set_up: SetUp, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", set_up.host.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", set_up.host.personal)
    monkeypatch.setenv("MODEL", str(tiny_bundle))
    assert main(["check", "--project", "3"]) == 0


def test_command_says_what_setting_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "label-studio:8080")
    assert main(["check"]) == 1
    assert "LABEL_STUDIO_URL must be" in capsys.readouterr().out


@pytest.mark.redis
class TestWorkers:
    def finding(self, url: str) -> Finding:
        nobody, queues = LabelStudioSettings("http://127.0.0.1:1"), QueueSettings(redis_url=url)
        _, finding, *_ = examine(nobody, ImageSettings(), queues, open_model=lambda: "default")
        return finding

    def test_workers_that_listen_are_counted(self, redis_server: str) -> None:
        redis = connect(redis_server, timeout_s=5)
        redis.flushall()
        with redis.pipeline() as pipeline:
            for name in ("one", "two"):
                add_sign_of_life(pipeline, name, at=redis_time(redis))
            pipeline.execute()
        sentence = "Redis answers at REDIS_URL, with noeviction; workers that listen: 2."
        assert self.finding(redis_server) == Finding(True, sentence)

    def test_redis_without_a_worker_is_of_no_use(self, redis_server: str) -> None:
        connect(redis_server, timeout_s=5).flushall()
        finding = self.finding(redis_server)
        assert not finding.is_good
        assert "Start one (make worker)" in finding.sentence

    @pytest.mark.parametrize(
        ("setting", "wrong", "right", "told"),
        [
            ("maxmemory-policy", "allkeys-lru", "noeviction", "allkeys-lru"),
            ("maxmemory-policy", "allkeys-lru", "noeviction", "Set its maxmemory-policy to noevic"),
            ("requirepass", "secret", "", "already authenticated"),
        ],
    )
    def test_a_redis_that_does_not_fit_is_told_with_the_cause(
        self, redis_server: str, setting: str, wrong: str, right: str, told: str
    ) -> None:
        redis = connect(redis_server, timeout_s=5)
        redis.config_set(setting, wrong)
        try:
            finding = self.finding(redis_server)
        finally:
            redis.config_set(setting, right)
        assert not finding.is_good
        assert told in finding.sentence

    def test_a_redis_that_is_not_there_is_told(self) -> None:
        finding = self.finding(f"redis://127.0.0.1:{free_port()}/0")
        assert not finding.is_good
        assert "does not answer (ConnectionError)" in finding.sentence
