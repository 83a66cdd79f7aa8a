"""Real servers for tests and benchmark: each is started on a free port and ended with its block."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A TCP port on loopback that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_process(
    command: list[str], log: Path, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **options
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(
    process: subprocess.Popen[bytes], is_there: Callable[[], bool], log: Path, seconds: float
) -> None:
    """Return once it is there; the end of the log is the reason where it never is."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            if is_there():
                return
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"{process.args!r} was not ready within {seconds:.0f} s:\n{tail}")


@contextmanager
def running_redis(
    redis_server: str, folder: Path, *options: str, port: int | None = None
) -> Iterator[str]:
    """A Redis that keeps nothing; yields its URL.

    Args:
        redis_server: The program.
        folder: Where its log goes.
        options: More of its command line, such as ``--maxmemory 5mb``.
        port: To start it again where it was.
    """
    port, log = port or free_port(), folder / "redis.log"
    command = [redis_server, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    with running_process([*command, "--save", "", "--appendonly", "no", *options], log) as process:

        def accepts() -> bool:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True

        wait_until_ready(process, accepts, log, seconds=10)
        yield f"redis://127.0.0.1:{port}/0"


@dataclass(frozen=True)
class RunningBackend:
    """Our server under gunicorn, as `make serve` starts it."""

    url: str
    """What Label Studio would be given, secret path included."""
    pid: int
    """The master's; its one worker is its child."""
    log: Path


@contextmanager
def running_backend(
    model: Path | str,
    folder: Path,
    environ: Mapping[str, str] | None = None,
    *,
    checkout: Path = REPOSITORY,
) -> Iterator[RunningBackend]:
    """Serve a bundle; yields once the model is loaded.

    Args:
        model: What MODEL is set to: a folder with a bundle, or its name under models/.
        folder: Where the log and the caches go.
        environ: More settings, such as LABEL_STUDIO_URL.
        checkout: Where the code lies.
    """
    port, log = free_port(), folder / "backend.log"
    settings = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(folder),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "MODEL": str(model),
        **(environ or {}),
    }
    secret = settings.get("EDGESAM_URL_SECRET", "")
    url = f"http://127.0.0.1:{port}{secret and '/' + secret}"
    command = [sys.executable, "-m", "gunicorn", "_wsgi:app"]
    with running_process(command, log, cwd=checkout, env=settings) as process:

        def is_ready() -> bool:
            with urllib.request.urlopen(url + "/ready", timeout=10) as answer:
                return bool(answer.status == 200)

        wait_until_ready(process, is_ready, log, seconds=60)
        yield RunningBackend(url, process.pid, log)


@dataclass(frozen=True)
class RunningLabelStudio:
    """Label Studio itself, with one user."""

    url: str
    username: str
    password: str
    legacy_token: str | None
    """``Authorization: Token ...``; None where legacy tokens are off."""
    personal_access_token: str
    """POST {"refresh": ...} to /api/token/refresh gives the Bearer token."""
    log: Path
    data: Path
    pid: int


@contextmanager
def running_label_studio(
    python: str, shared: Path, data: Path, *options: str, seconds: int = 240
) -> Iterator[RunningLabelStudio]:
    """Start Label Studio with a database of its own.

    Args:
        python: The Python beside which Label Studio is installed.
        shared: ../shared, which holds the script that starts it.
        data: Folder of the database; made if absent, may be reused.
        options: More options of the script, such as ``--legacy-tokens off``.
        seconds: How long the first start may take; it migrates the database.
    """
    script = shared / "label_studio" / "start_label_studio.py"
    command = [python, str(script), "--port", str(free_port()), "--data", str(data), *options]
    told = subprocess.run(
        [*command, "--wait", str(seconds)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    if told.returncode:
        raise RuntimeError(f"Label Studio did not start: {told.stderr or told.stdout}")
    facts = json.loads(told.stdout)
    try:
        yield RunningLabelStudio(
            url=facts["url"],
            username=facts["username"],
            password=facts["password"],
            legacy_token=facts["legacy_token"],
            personal_access_token=facts["personal_access_token"],
            log=Path(facts["log"]),
            data=Path(facts["data"]),
            pid=facts["pid"],
        )
    finally:
        # The script left it running in a process group of its own.
        with suppress(ProcessLookupError):
            os.killpg(facts["pid"], signal.SIGTERM)
        _wait_until_gone(facts["pid"], seconds=20)


def _wait_until_gone(group: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)
