"""Label Studio as it runs behind a proxy that gives it a path prefix."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.servers import free_port, running_process, wait_until_ready
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
    with (
        running_proxy(prefix, proxy_port, port),
        running_process(command, log, env=environ) as process,
    ):
        wait_until_ready(
            process, lambda: requests.get(f"{url}/health", timeout=10).ok, log, START_S
        )
        yield url
