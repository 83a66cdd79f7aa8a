"""What `/metrics` adds up over several web processes, and forgets with them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.backend.conftest import body, keypoint
from tests.backend.test_gunicorn import children
from tests.backend.workers import wait_until
from tests.servers import RunningBackend, running_backend

PREDICTED = ("edgesam_request_seconds_count", ("predict", "200"))


@contextmanager
def asleep(pid: int) -> Iterator[None]:
    """So that another process answers."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def click(server: RunningBackend) -> None:
    answer = requests.post(server.url + "/predict", json=body(keypoint(50, 50)), timeout=60)
    assert answer.status_code == 200


def shown(server: RunningBackend) -> dict[tuple[str, tuple[str, ...]], float]:
    """What the process that answers shows, by name and the values of its labels."""
    text = requests.get(server.url + "/metrics", timeout=60).text
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["", "--preload"], ids=["each loads", "preload"])
def test_whichever_process_is_asked_shows_the_clicks_of_all(
    disc_bundle: Path, tmp_path: Path, arguments: str
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environ = {
        "WEB_CONCURRENCY": "2",
        "GUNICORN_CMD_ARGS": arguments,
        "EDGESAM_THREADS": "1",
        "TMPDIR": str(temporary),
    }
    with running_backend(disc_bundle, tmp_path, environ) as server:
        wait_until(lambda: server.log.read_text().count("serving model") == 2, "both models")
        first, second = children(server.pid)
        with asleep(first):
            for _ in range(3):
                click(server)
            told = [shown(server)]
        with asleep(second):
            for _ in range(2):
                click(server)
            told.append(shown(server))
        with asleep(first):
            told.append(shown(server))
        assert [metrics[PREDICTED] for metrics in told] == [3, 5, 5]
        for metrics in told:
            outcomes = [n for (name, _), n in metrics.items() if name.startswith("edgesam_embed")]
            assert sum(outcomes) == metrics[PREDICTED]
            assert [n for (name, _), n in metrics.items() if name == "edgesam_model_info"] == [1]

        for killed in (first, second):
            os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len(children(server.pid) - {first, second}) == 2, "two new processes")
        click(server)
        assert shown(server)[PREDICTED] == 6  # what dead processes counted stays
        assert len(list(temporary.glob("edgesam-*"))) == 1
    assert not list(temporary.glob("edgesam-*"))
