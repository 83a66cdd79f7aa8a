"""A Redis that can be killed and come back, and encoder workers as `make worker` starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from backend.jobs import EncodeRequest
from backend.queues import connect, listening
from tests import parts, servers

PATIENCE_S = 60.0


def wait_until(is_so: Callable[[], Any], what: str) -> None:
    """Return once it is so; for things that take as long as the machine is busy."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE_S:.0f} s"
        time.sleep(0.02)


def request(uri: str = "http://127.0.0.1:1/a.png", **fields: Any) -> EncodeRequest:
    """An image that exists nowhere, unless said otherwise."""
    given = {"task_id": 4, "image_key": None, "version": "v", "with_proposals": False, **fields}
    return EncodeRequest(uri, **given)


class MortalRedis:
    """A real Redis that keeps nothing, on one port through all its lives."""

    def __init__(self, folder: Path) -> None:
        self.port = servers.free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._program = parts.find_redis_server()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def client(self) -> Redis:
        return connect(self.url, timeout_s=5)

    def start(self) -> None:
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self._folder), "--save", "", "--appendonly", "no"]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

        def answers() -> bool:
            try:
                return bool(self.client().ping())
            except RedisError:
                return False

        wait_until(answers, "Redis's first answer")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running_worker(
    bundle: Path, redis_url: str, folder: Path, **environ: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process that listens; its log is `folder`/worker.log.

    Args:
        bundle: What MODEL is set to.
        redis_url: Where its jobs come from.
        folder: Home; the store lies in its `cache` unless `environ` says otherwise.
        environ: More settings.
    """
    log, redis = folder / "worker.log", connect(redis_url, timeout_s=5)
    before = listening(redis)
    settings = {
        "PATH": os.environ.get("PATH", ""),
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
        "MODEL": str(bundle),
        "REDIS_URL": redis_url,
        "EDGESAM_THREADS": "1",
        "EDGESAM_CACHE_DIR": str(folder / "cache"),
        "EDGESAM_IMAGE_HOSTS": "127.0.0.1",
        **environ,
    }
    command = [sys.executable, "-m", "backend.worker"]
    with servers.running_process(command, log, cwd=parts.REPOSITORY, env=settings) as process:
        servers.wait_until_ready(
            process, lambda: bool(listening(redis) - before), log, seconds=PATIENCE_S
        )
        yield process
