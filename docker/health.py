"""The image's health check: ends well if the server answers ``/health`` within two seconds.

It follows ``PORT`` and ``EDGESAM_URL_SECRET``, as the server does.
"""

from __future__ import annotations

import os
from urllib.request import urlopen

port = os.environ.get("PORT") or "9090"
secret = os.environ.get("EDGESAM_URL_SECRET") or ""
urlopen(f"http://127.0.0.1:{port}{secret and '/' + secret}/health", timeout=2).close()
