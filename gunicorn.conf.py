"""How gunicorn serves ``_wsgi:app``; it reads this file by itself from the working directory.

One process with several threads: the embeddings, the earlier logits and ONNX Runtime's threads are
then shared by all annotators. No preload: ONNX Runtime's threads do not survive a fork.

Environment: ``HOST`` and ``PORT`` (127.0.0.1 and 9090), ``THREADS`` (16 requests at a time; a
waiting click holds one, and Label Studio's health check needs a free one).
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

host = os.environ.get("HOST") or "127.0.0.1"
port = int(os.environ.get("PORT") or 9090)

bind = f"{host}:{port}"
workers = 1
worker_class = "gthread"
threads = int(os.environ.get("THREADS") or 16)
preload_app = False
timeout = 120  # Seconds without a sign of life before the process is replaced.
graceful_timeout = 30  # Seconds that running requests get when the server is stopped.
keepalive = 75  # Seconds; Label Studio and proxies keep their connections for about a minute.
control_socket_disable = True  # Nothing outside the server steers it.


def on_starting(server: Any) -> None:
    """Say which address is taken and what to do, before gunicorn tries it five times."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            sys.exit(
                f"Cannot listen on {bind}: {exc.strerror}. "
                f"Stop the program that has the port, or choose another: make serve PORT={port + 1}"
            )
