"""Encodes for all web processes: ``python -m backend.worker`` takes jobs until it is told to stop.

It is the same service as the web's, from the same environment, without its web half, and its graph
stays open between jobs. What a job made goes into the shared store (``EDGESAM_CACHE_DIR``, or
``EDGESAM_STORE_URL`` between machines), under the key that the worker works out from the bytes that
it fetched itself. A Redis that goes away ends nothing.

How jobs reach it, and what happens when one fails, is rq_worker.py's.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from backend import logs
from backend.jobs import ENCODE, EncodeRequest
from backend.queues import eviction_complaint
from backend.rq_worker import EncoderWorker, Functions, no_answer
from backend.service import Service
from backend.settings import Settings, SettingsError
from edgesam_core.errors import EdgeSamError

logger = logging.getLogger("backend.worker")  # also where it runs as __main__

_REDIS_PAUSE_S = 2.0


def encoder(service: Service) -> Functions:
    """What a worker with this service offers."""

    def encode(**fields: Any) -> str:
        request, started = EncodeRequest(**fields), time.perf_counter()
        outcome = "hit" if service.encoding.job(request) == "hit" else "encoded"
        milliseconds = (time.perf_counter() - started) * 1000
        logger.info("encode task %s: %s in %.0f ms", request.task_id, outcome, milliseconds)
        return outcome

    return {ENCODE: encode}


def _is_news(record: logging.LogRecord) -> bool:
    return "could not connect to Redis" not in record.getMessage()


def serve(
    url: str,
    functions: Functions,
    make_worker: Callable[[str, Functions, logs.Complaints], EncoderWorker] = EncoderWorker,
) -> None:
    """Take jobs until told to stop; a Redis that is away is waited for."""
    complaints = logs.Complaints(logger)
    logging.getLogger("rq.worker").addFilter(_is_news)  # it would say so every two seconds
    while True:
        worker: EncoderWorker | None = None
        try:
            worker = make_worker(url, functions, complaints)
            worker.connection.ping()
            if complaint := eviction_complaint(worker.connection):
                complaints.warn(complaint)
            logger.info("listening to %s as %s", ", ".join(worker.role.queues), worker.name)
            worker.work(logging_level="WARNING")
        except RedisError as exc:
            complaints.warn(no_answer(exc))
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if worker is not None and worker.is_stopping:
            return
        time.sleep(_REDIS_PAUSE_S)


def main() -> int:
    """Load the model, then listen; 1 with a sentence where that cannot be."""
    try:
        settings = Settings.from_env()
    except SettingsError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    url = settings.queues.redis_url
    if url is None:
        sys.stderr.write("A worker takes its jobs from Redis: set REDIS_URL, as for the server.\n")
        return 1
    logs.configure(settings.logs)
    service = Service.that_only_encodes(settings)
    try:
        service.models.own.segmenter()
    except EdgeSamError as exc:
        logger.error("this worker ends: %s", exc.sentence)
        return 1
    with suppress(KeyboardInterrupt):
        serve(url, encoder(service))
    return 0


if __name__ == "__main__":
    sys.exit(main())
