"""gunicorn as `make serve` starts it: several processes, each with a model of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import requests

from backend.settings import ServerSettings
from tests.backend.conftest import body, keypoint
from tests.backend.workers import wait_until
from tests.parts import REPOSITORY
from tests.servers import running_backend


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["", "--preload"], ids=["each loads", "preload"])
def test_each_process_opens_the_model_itself_and_answers(
    disc_bundle: Path, tmp_path: Path, arguments: str
) -> None:
    environ = {"WEB_CONCURRENCY": "2", "GUNICORN_CMD_ARGS": arguments, "EDGESAM_THREADS": "1"}
    with running_backend(disc_bundle, tmp_path, environ) as server:
        wait_until(lambda: server.log.read_text().count("serving model") == 2, "both models")
        first, second = children(server.pid)
        for stopped in (first, second):  # so that the other one answers
            os.kill(stopped, signal.SIGSTOP)
            try:
                answer = requests.post(
                    server.url + "/predict", json=body(keypoint(50, 50)), timeout=60
                )
            finally:
                os.kill(stopped, signal.SIGCONT)
            assert answer.status_code == 200
            assert answer.json()["results"][0]["result"]


@pytest.mark.slow
def test_a_web_process_that_is_killed_is_replaced(disc_bundle: Path, tmp_path: Path) -> None:
    with running_backend(disc_bundle, tmp_path, {"EDGESAM_THREADS": "1"}) as server:
        (killed,) = children(server.pid)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: children(server.pid) - {killed}, "another process")
        answer = requests.post(server.url + "/predict", json=body(keypoint(50, 50)), timeout=60)
        assert answer.status_code == 200


def test_gunicorn_and_the_application_count_with_the_same_threads() -> None:
    text = (REPOSITORY / "gunicorn.conf.py").read_text(encoding="utf-8")
    assert f'threads = int(os.environ.get("THREADS") or {ServerSettings().threads})' in text
