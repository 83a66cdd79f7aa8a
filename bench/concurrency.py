"""Many annotators at once, and worker processes that encode for them.

Everything is real and on this machine alone: gunicorn as ``make serve`` starts it, Redis, workers
as ``make worker`` starts them, a host for the photos. The annotators are threads of this process
that wait for each answer, so their own work (a few milliseconds a click) takes processor time from
the server. Each part ends after a few seconds. Draws both pictures of docs/benchmark.md.

    python -m bench concurrency
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import requests

from bench.annotator import CLICK, SIZES_WH, click, health_checks, image_host, photo
from bench.plots import save_plots
from bench.timing import Times, seconds
from tests.backend.workers import running_worker
from tests.servers import running_backend, running_redis

ANNOTATORS = (1, 2, 4, 8, 16)
PAUSES_S = {"without a pause": 0.0, "a click a second": 1.0}
"""Between an answer and the next click: the most that can be asked, and a quick annotator."""
SECONDS = 8.0
"""For each number of annotators and pause."""
IMAGES = 8
HEALTH_LIMIT_MS = 1000
"""Label Studio's: a slower server counts as disconnected."""
HEALTH_GOAL = 0.2

WORKERS = (0, 1, 2)
WAITING = 8
"""Annotators who open new images while the throughput is measured."""

SIZE = "1200x900"
IMAGES_DIR = Path(__file__).resolve().parent.parent / "docs" / "images"

Uris = Callable[[int], str]
"""Which image the annotator with this number clicks on next."""


@dataclass(frozen=True)
class Load:
    """What annotators saw who clicked for a while."""

    clicks: Times
    per_second: float
    health: list[float]
    # seconds that each health check took


def run() -> list[dict[str, Any]]:
    """Warm clicks, health checks and the throughput of new images; two pictures of them."""
    with image_host({SIZE: photo(SIZES_WH[SIZE])}) as host:
        rows = _warm_clicks(host)
        redis_server = shutil.which("redis-server")
        if redis_server is None:
            print("redis-server is not installed: workers are not measured", file=sys.stderr)
        else:
            rows += _throughput(host, redis_server)
    save_plots(rows, IMAGES_DIR)
    return rows


def under_load(
    backend_url: str, annotators: int, uris: Uris, *, lasts_s: float, pause_s: float = 0.0
) -> Load:
    """Let annotators click, and ask for the server's health beside them.

    Args:
        backend_url: The server.
        annotators: How many click, each on its own.
        uris: What they click on.
        lasts_s: Seconds after which nobody clicks again; everyone clicks once.
        pause_s: Of each annotator between an answer and the next click.

    Raises:
        requests.HTTPError: A click or a health check was refused.
    """

    def annotate(who: int) -> list[float]:
        random = Random(who)
        taken: list[float] = []
        time.sleep(pause_s * random.random())
        while True:
            at = (CLICK[0] + random.uniform(-0.05, 0.05), CLICK[1] + random.uniform(-0.05, 0.05))
            region_id = f"{who}-{len(taken)}"
            ask = partial(click, backend_url, uris(who), SIZES_WH[SIZE], at, region_id=region_id)
            taken.append(seconds(ask))
            if time.perf_counter() - began >= lasts_s:
                return taken
            time.sleep(pause_s)

    with (
        # The checks are a process of their own: the annotators' threads would delay their clock.
        ProcessPoolExecutor(1, get_context("spawn")) as label_studio,
        ThreadPoolExecutor(annotators) as pool,
    ):
        label_studio.submit(int).result()  # it has started
        began = time.perf_counter()
        health = label_studio.submit(health_checks, backend_url, lasts_s)
        working = [pool.submit(annotate, who) for who in range(annotators)]
        taken = [second for one in working for second in one.result()]
        elapsed = time.perf_counter() - began
        return Load(Times.of(taken), len(taken) / elapsed, health.result())


def _warm_clicks(host: str) -> list[dict[str, Any]]:
    """One row for each number of annotators and pause, and the slowest health checks."""

    def warm(who: int) -> str:
        return f"http://{host}/{SIZE}/warm-{who % IMAGES}.jpg"

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        settings = {"EDGESAM_IMAGE_HOSTS": host}
        with running_backend("default", Path(folder), settings) as server:
            for number in range(IMAGES):
                click(server.url, warm(number), SIZES_WH[SIZE])
            for pause, pause_s in PAUSES_S.items():
                alone_ms = None
                for annotators in ANNOTATORS:
                    load = under_load(
                        server.url, annotators, warm, lasts_s=SECONDS, pause_s=pause_s
                    )
                    alone_ms = alone_ms or load.clicks.median_ms
                    rows.append(_row_of_clicks(load, annotators, pause, alone_ms))
                    if annotators == ANNOTATORS[-1] and not pause_s:
                        busiest = load
            rows.append(_row_of_health(busiest, "warm images"))
            new = _new_images(host, "busy")
            busiest = under_load(server.url, ANNOTATORS[-1], new, lasts_s=SECONDS)
            rows.append(_row_of_health(busiest, "new images"))
    return rows


def _row_of_clicks(load: Load, annotators: int, pause: str, alone_ms: float) -> dict[str, Any]:
    slowest_ms = 1000 * max(load.health)
    return {
        "name": f"warm click {pause}, annotators: {annotators}",
        "ours_ms": load.clicks.median_ms,
        "p95_ms": load.clicks.p95_ms,
        "peer_ms": alone_ms,
        "peer": "one annotator alone",
        "note": f"{load.per_second:.0f} clicks/s; slowest health check {slowest_ms:.0f} ms",
        "annotators": annotators,
        "pause": pause,
        "clicks_per_second": load.per_second,
        "health_max_ms": slowest_ms,
    }


def _row_of_health(load: Load, images: str) -> dict[str, Any]:
    """The slowest health check under full load, beside what it may take."""
    times = Times.of(load.health)
    return {
        "name": f"health check, slowest of {len(load.health)}, {images}",
        "ours_ms": 1000 * max(load.health),
        "p95_ms": times.p95_ms,
        "peer_ms": HEALTH_LIMIT_MS,
        "peer": "Label Studio's limit",
        "goal": HEALTH_GOAL,
        "note": f"{ANNOTATORS[-1]} annotators without a pause; median {times.median_ms:.0f} ms",
    }


def _new_images(host: str, name: str) -> Uris:
    numbers = itertools.count()
    return lambda who: f"http://{host}/{SIZE}/{name}-{next(numbers)}.jpg"


def _throughput(host: str, redis_server: str) -> list[dict[str, Any]]:
    """Images encoded a second, by how many workers the processors are divided among."""
    rows: list[dict[str, Any]] = []
    for workers in WORKERS:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            redis_url = stack.enter_context(running_redis(redis_server, folder))
            shared = {"EDGESAM_IMAGE_HOSTS": host, "EDGESAM_CACHE_DIR": str(folder / "cache")}
            threads = str(max((os.cpu_count() or 1) // max(workers, 1), 1))
            for _ in range(workers):
                worker = running_worker(
                    Path("default"), redis_url, folder, **shared, EDGESAM_THREADS=threads
                )
                stack.enter_context(worker)
            server = stack.enter_context(
                running_backend("default", folder, {**shared, "REDIS_URL": redis_url})
            )
            click(server.url, f"http://{host}/{SIZE}/first-{workers}.jpg", SIZES_WH[SIZE])
            uris = _new_images(host, f"new-{workers}")
            load = under_load(server.url, WAITING, uris, lasts_s=SECONDS)
            by_workers = _encoded_by_workers(server.url)
        image_ms = 1000 / load.per_second
        rows.append({
            "name": f"new image, workers: {workers}",
            "ours_ms": image_ms,
            "peer_ms": rows[0]["ours_ms"] if rows else image_ms,
            "peer": "no worker",
            "note": f"{load.per_second:.1f} images/s; {by_workers} by workers; "
            f"click of {WAITING} annotators {load.clicks.median_ms:.0f} ms",
            "workers": workers,
            "images_per_second": load.per_second,
            "encoded_by_workers": by_workers,
        })  # fmt: skip
    return rows


def _encoded_by_workers(backend_url: str) -> int:
    """How many clicks' images the server says that workers encoded."""
    text = requests.get(backend_url + "/metrics", timeout=5).text
    found = re.search(r'^edgesam_encode_jobs_total\{outcome="encoded"\} (\S+)$', text, re.MULTILINE)
    return int(float(found[1])) if found else 0
