"""Label Studio as it runs behind a proxy that gives it a path prefix."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

from tests.servers import free_port
from tests.system.reverse_proxy import running_proxy

START_S = 120
"""On a database that exists, a start takes five seconds where nothing else runs."""


@contextmanager
def running_under_prefix(python: str, data: Path, prefix: str) -> Iterator[str]:
    """Start Label Studio on a database that has a user; yields its address, prefix and all.

    Args:
        python: The Python beside which Label Studio is installed.
        data: The database's folder: a copy, where another Label Studio has the original.
        prefix: Such as ``/tool``.
    """
    port, proxy_port = free_port(), free_port()
    url = f"http://127.0.0.1:{proxy_port}{prefix}"
    environ = {
        **os.environ,
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_HOST": url,
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "LATEST_VERSION_CHECK": "false",
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    command = [
        str(Path(python).parent / "label-studio"), "start", "--no-browser",
        "--internal-host", "127.0.0.1", "--port", str(port), "--data-dir", str(data),
    ]  # fmt: skip
    log = data / "under_prefix.log"
    with log.open("wb") as out, running_proxy(prefix, proxy_port, port):
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
        try:
            _wait_for(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if requests.get(f"{url}/health", timeout=10).ok:
                return
        time.sleep(0.2)
    raise RuntimeError(f"Label Studio did not start:\n{log.read_text(errors='replace')[-2000:]}")
