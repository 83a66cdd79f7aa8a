"""How gunicorn serves ``_wsgi:app``; it reads this file by itself from the working directory.

One process with several threads: the embeddings, the earlier logits and ONNX Runtime's threads are
then shared by all annotators. Each process loads the model by itself, after the fork, since ONNX
Runtime's threads do not survive one; that holds with ``--preload``, too. Several processes count
what ``/metrics`` shows in files of one folder, which is there as long as the server.

Environment: ``HOST`` and ``PORT`` (127.0.0.1 and 9090), ``WEB_CONCURRENCY`` (1 process) and
``THREADS`` (32 requests at a time in each, at most three quarters of them clicks).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

_M_ARENA_MAX = -8  # malloc.h
_COUNTS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client looks for it when it is imported
_COUNTS_PREFIX = "edgesam-metrics-"

host = os.environ.get("HOST") or "127.0.0.1"
port = int(os.environ.get("PORT") or 9090)

bind = f"{host}:{port}"
workers = int(os.environ.get("WEB_CONCURRENCY") or 1)
worker_class = "gthread"
threads = int(os.environ.get("THREADS") or 32)
timeout = 120  # Seconds without a sign of life before the process is replaced.
graceful_timeout = 30  # Seconds that running requests get when the server is stopped.
keepalive = 75  # Seconds; Label Studio and proxies keep their connections for about a minute.
control_socket_disable = True  # Nothing outside the server steers it.

_is_reload = Path(os.environ.get(_COUNTS_DIR, "")).name.startswith(_COUNTS_PREFIX)
if workers == 1:
    os.environ.pop(_COUNTS_DIR, None)
elif not _is_reload:
    os.environ[_COUNTS_DIR] = tempfile.mkdtemp(prefix=_COUNTS_PREFIX)


def on_starting(server: Any) -> None:
    """Say which address is taken and what to do, before gunicorn tries it five times."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            on_exit(server)
            sys.exit(
                f"Cannot listen on {bind}: {exc.strerror}. "
                f"Stop the program that has the port, or choose another: make serve PORT={port + 1}"
            )


def post_worker_init(worker: Any) -> None:
    """Load the model and look after training runs, in the process that will serve."""
    # glibc gives threads up to 8 heaps per processor, each of which keeps what its largest images
    # took: 276 MB and growing after 1,000 clicks of 16 annotators, with two heaps 207 MB.
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    worker.wsgi.extensions["edgesam"].start()


def child_exit(server: Any, worker: Any) -> None:
    """Go on showing what a process counted that has ended, but not what it served."""
    if workers > 1:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    """Forget what the processes have counted."""
    if workers > 1:
        shutil.rmtree(os.environ[_COUNTS_DIR], ignore_errors=True)
