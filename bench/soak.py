"""``make soak``: many annotators at once on a real server, for minutes; is any of them wronged?

16 annotators click without a pause on 8 pictures that this file draws. Some wait for each answer,
some send the next click of an object at once, as Label Studio's page does. The server has room for
fewer embeddings than there are pictures, so that encodes go on all the time. It is asked

    errors          is every click answered with 200, or with 409 where a newer one took its place?
    wrong masks     is every mask the one that a server of its own gave for this picture and prompt?
    memory          does it stay within 5 % of what it was after the first fifth of the time?
    health          does Label Studio's health check get its answer in time?

once of one web process, as ``make serve`` starts it, and once of two with Redis and a worker. The
last line is JSON; the status is 1 where an answer is no.

    python -m bench.soak [--minutes 10] [--clicks 10000] [--setup alone|crowd]

Everything listens on loopback. The run ends when both minutes and clicks are reached.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image, ImageDraw

from backend.app import create_app
from backend.refinement import RefinementSettings
from backend.settings import Settings
from bench.annotator import LABEL_CONFIG, image_host
from edgesam_core.rle import brush_rle_to_mask
from tests.backend.workers import running_worker
from tests.parts import find_redis_server
from tests.servers import RunningBackend, running_backend, running_redis

ANNOTATORS = 16
PICTURES = 8
OBJECTS = 4

HEALTH_LIMIT_S = 1.0  # Label Studio's patience
MEMORY_LIMIT = 0.05
SAME_IOU = 0.7
"""Of masks of one prompt, which differ a little by what was kept of earlier clicks; no two pictures
have the same size, nor anything in the same place."""
SETUPS = ("alone", "crowd")
ROOM = {
    "EDGESAM_EMBEDDING_CACHE_BYTES": "1000000",  # 3 embeddings at input size 384
    "EDGESAM_STORE_BYTES": "2000000",  # and 5, or their like in earlier logits
}


@dataclass(frozen=True)
class Drawn:
    """An object of a picture, and what is right to answer."""

    uri: str
    size_wh: tuple[int, int]
    points: tuple[tuple[float, float], ...]
    # in percent, in the order of the clicks; the second is a correction
    right: tuple[tuple[list[int], ...], ...]
    # RLEs of the masks that are right after the first click, after the second one: with or without
    # the logits of the first


@dataclass
class Outcome:
    """What was seen in one run."""

    setup: str
    clicks: int = 0
    superseded: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong_masks: int = 0
    minutes: float = 0.0
    click_ms: dict[str, float] = field(default_factory=dict)
    health_ms: dict[str, float] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)
    memory_growth: float = 0.0

    @property
    def wrongs(self) -> list[str]:
        """What must never be, however busy the machine is."""
        said = [f"{n} x {error}" for error, n in self.errors.items()]
        if self.wrong_masks:
            said.append(f"{self.wrong_masks} wrong masks")
        return said

    @property
    def complaints(self) -> list[str]:
        """What went wrong, in words."""
        said = self.wrongs
        if self.memory_growth > MEMORY_LIMIT:
            said.append(f"memory grew by {self.memory_growth:.1%}")
        if self.health_ms["worst"] > 1000 * HEALTH_LIMIT_S:
            said.append(f"a health check took {self.health_ms['worst']:.0f} ms")
        return said


# --- pictures and what is right ---


@dataclass(frozen=True)
class Picture:
    """A picture that this file drew."""

    png: bytes
    size_wh: tuple[int, int]
    objects_xy: tuple[tuple[float, float], ...]
    # a point on each, in percent


def draw(number: int) -> Picture:
    """A picture of coloured shapes, unlike all others in size, places and colours."""
    rng = random.Random(number)
    size_wh = width, height = 640 + 40 * number, 480 + 24 * number
    corners = rng.sample([(x, y) for x in (25, 75) for y in (25, 75)], OBJECTS)
    objects_xy = tuple((x + rng.uniform(-10, 10), y + rng.uniform(-10, 10)) for x, y in corners)
    image = Image.new("RGB", size_wh, tuple(rng.randrange(40, 90) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for x, y in objects_xy:
        cx, cy = x * width / 100, y * height / 100
        rx, ry = width * rng.uniform(0.06, 0.14), height * rng.uniform(0.06, 0.14)
        shape = rng.choice((pen.ellipse, pen.rectangle))
        colour = tuple(rng.randrange(120, 256) for _ in range(3))
        shape((cx - rx, cy - ry, cx + rx, cy + ry), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(buffer.getvalue(), size_wh, objects_xy)


def request_of(drawn: Drawn, ids: Sequence[str]) -> dict[str, Any]:
    """The body of /predict for as many clicks as there are ids."""
    regions = [
        {
            "original_width": drawn.size_wh[0],
            "original_height": drawn.size_wh[1],
            "image_rotation": 0,
            "value": {"x": x, "y": y, "width": 0.2, "keypointlabels": ["Object"]},
            "is_positive": True,
            "id": region_id,
            "from_name": "click",
            "to_name": "image",
            "type": "keypointlabels",
            "origin": "manual",
        }
        for (x, y), region_id in zip(drawn.points, ids, strict=False)
    ]
    return {
        "tasks": [{"id": 1, "data": {"image": drawn.uri}}],
        "project": "1.1700000000",
        "label_config": LABEL_CONFIG,
        "params": {"context": {"result": regions}},
    }


def mask_in(answer: Mapping[str, Any]) -> list[int]:
    """The RLE in an answer of /predict."""
    rle: list[int] = answer["results"][0]["result"][0]["value"]["rle"]
    return rle


def right_answers(host: str, pictures: Sequence[Picture]) -> list[Drawn]:
    """All objects of all pictures, with the masks that a server of their own gives."""
    environ = {"EDGESAM_IMAGE_HOSTS": host, "EDGESAM_CACHE_DIR": "", "LOG_LEVEL": "error"}
    settings = Settings.from_env(environ)
    forgetful = Settings(
        images=settings.images, logs=settings.logs, refinement=RefinementSettings(cache_bytes=0)
    )
    clients = [
        create_app(Settings(images=settings.images, logs=settings.logs)).test_client(),
        create_app(forgetful).test_client(),
    ]
    known = []
    for number, picture in enumerate(pictures):
        size_wh = picture.size_wh
        for x, y in picture.objects_xy:
            points = ((x, y), (x + 2.0, y - 2.0))
            drawn = Drawn(f"http://{host}/{number}/soak.png", size_wh, points, ())
            after: tuple[list[list[int]], list[list[int]]] = ([], [])
            for client in clients:
                for count, masks in enumerate(after, start=1):
                    answer = client.post("/predict", json=request_of(drawn, "ab"[:count]))
                    assert answer.status_code == 200, answer.json
                    masks.append(mask_in(answer.json))
            known.append(Drawn(drawn.uri, size_wh, points, tuple(tuple(m) for m in after)))
    return known


def is_right(drawn: Drawn, count: int, rle: list[int]) -> bool:
    """Whether a mask after `count` clicks is the one of this picture and prompt."""
    right = drawn.right[count - 1]
    if rle in right:
        return True
    size_hw = drawn.size_wh[::-1]
    try:
        mask = brush_rle_to_mask(rle, size_hw)
    except Exception:  # of another size: somebody else's
        return False
    for other in (brush_rle_to_mask(one, size_hw) for one in right):
        if np.count_nonzero(mask & other) >= SAME_IOU * np.count_nonzero(mask | other):
            return True
    return False


# --- who clicks, who watches ---


class Crowd:
    """The annotators, and what they were answered."""

    def __init__(self, url: str, known: Sequence[Drawn], outcome: Outcome) -> None:
        """Nobody clicks yet.

        Args:
            url: Of the server.
            known: What there is to click on.
            outcome: Where to count.
        """
        self._url = url
        self._known = known
        self._outcome = outcome
        self._lock = threading.Lock()
        self._senders = ThreadPoolExecutor(2 * ANNOTATORS)
        self._local = threading.local()
        self.taken_ms: list[float] = []
        self.is_over = threading.Event()

    def annotate(self, number: int) -> None:
        """Click until it is over: on any object, then a correction, at once or after the mask."""
        rng = random.Random(1000 + number)
        while not self.is_over.is_set():
            drawn = rng.choice(self._known)
            ids = [uuid.uuid4().hex[:10] for _ in drawn.points]
            sent: list[Future[None]] = []
            for count in range(1, len(ids) + 1):
                sent.append(self._senders.submit(self._click, drawn, ids[:count], len(ids)))
                if rng.random() < 0.8:
                    sent[-1].result()
                else:
                    time.sleep(0.02)  # a quick hand; its first click is the server's first, too
            for one in sent:
                one.result()

    def close(self) -> None:
        """Once all have stopped."""
        self._senders.shutdown()

    def _click(self, drawn: Drawn, ids: Sequence[str], last: int) -> None:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        started = time.perf_counter()
        error, is_superseded, is_wrong = "", False, False
        try:
            answer = self._local.session.post(
                self._url + "/predict", json=request_of(drawn, ids), timeout=100
            )
            if answer.status_code == 409 and len(ids) < last:
                is_superseded = True
            elif answer.status_code != 200:
                error = f"{answer.status_code} {answer.json().get('code')}"
            else:
                is_wrong = not is_right(drawn, len(ids), mask_in(answer.json()))
        except (requests.RequestException, ValueError, LookupError) as exc:
            error = type(exc).__name__
        taken_ms = (time.perf_counter() - started) * 1000
        with self._lock:
            self._outcome.clicks += 1
            self._outcome.superseded += is_superseded
            self._outcome.wrong_masks += is_wrong
            self._outcome.errors.update([error] if error else [])
            self.taken_ms.append(taken_ms)


def ask_for_health(url: str, is_over: threading.Event, taken_ms: list[float]) -> None:
    """Ask ten times a second, on a new connection each time, as Label Studio does at its worst."""
    while not is_over.wait(0.1):
        started = time.perf_counter()
        try:
            healthy = requests.get(url + "/health", timeout=10).status_code == 200
        except requests.RequestException:
            healthy = False
        taken_ms.append((time.perf_counter() - started) * 1000 if healthy else 1e6)


def memory_mb(pids: Sequence[int]) -> float:
    """What processes and their children hold: pages that they share count once (PSS)."""
    total_kb = 0
    for pid in pids:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (str(pid), *children):
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total_kb += next(int(x.split()[1]) for x in rollup if x.startswith("Pss:"))
    return total_kb / 1024


@contextmanager
def running_setup(
    setup: str, folder: Path, host: str
) -> Iterator[tuple[RunningBackend, list[int]]]:
    """The server, and the pids whose memory counts."""
    environ = {"EDGESAM_IMAGE_HOSTS": host, "EDGESAM_CACHE_DIR": str(folder / "cache"), **ROOM}
    with ExitStack() as stack:
        pids = []
        if setup == "crowd":
            url = stack.enter_context(running_redis(find_redis_server(), folder))
            environ |= {"REDIS_URL": url, "WEB_CONCURRENCY": "2"}
            worker = running_worker(Path("default"), url, folder, **environ)
            pids.append(stack.enter_context(worker).pid)
        server = stack.enter_context(running_backend("default", folder, environ))
        yield server, [server.pid, *pids]


def soak(setup: str, *, minutes: float, clicks: int) -> Outcome:
    """One run; what was seen.

    Args:
        setup: One of `SETUPS`.
        minutes: At least so long.
        clicks: At least so many.
    """
    outcome = Outcome(setup)
    pictures = [draw(number) for number in range(PICTURES)]
    photos = {str(number): picture.png for number, picture in enumerate(pictures)}
    with ExitStack() as stack:
        host = stack.enter_context(image_host(photos))
        known = right_answers(host, pictures)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server, pids = stack.enter_context(running_setup(setup, folder, host))
        crowd = Crowd(server.url, known, outcome)
        health_ms: list[float] = []
        memory: list[float] = []
        threads = [
            threading.Thread(target=crowd.annotate, args=(n,), daemon=True)
            for n in range(ANNOTATORS)
        ]
        threads.append(
            threading.Thread(
                target=ask_for_health, args=(server.url, crowd.is_over, health_ms), daemon=True
            )
        )
        started = time.monotonic()
        for thread in threads:
            thread.start()
        while time.monotonic() - started < 60 * minutes or outcome.clicks < clicks:
            time.sleep(1)
            memory.append(memory_mb(pids))
            if sum(outcome.errors.values()) > 100 or outcome.wrong_masks > 100:
                break  # it has failed, and how is known
        crowd.is_over.set()
        for thread in threads:
            thread.join()
        crowd.close()
    outcome.minutes = round((time.monotonic() - started) / 60, 2)
    outcome.click_ms = _spread(crowd.taken_ms)
    outcome.health_ms = _spread(health_ms)
    _judge_memory(outcome, memory)
    return outcome


def _spread(taken_ms: Sequence[float]) -> dict[str, float]:
    in_order = sorted(taken_ms)
    return {
        "median": round(statistics.median(in_order), 1),
        "p95": round(in_order[int(0.95 * (len(in_order) - 1))], 1),
        "worst": round(in_order[-1], 1),
    }


def _judge_memory(outcome: Outcome, samples: Sequence[float]) -> None:
    """The last fifth of the time beside the second one; before that, memory may still fill."""
    fifth = max(1, len(samples) // 5)
    early = statistics.median(samples[fifth : 2 * fifth] or samples)
    late = statistics.median(samples[-fifth:])
    outcome.memory_mb = {"early": round(early), "late": round(late), "most": round(max(samples))}
    outcome.memory_growth = round(late / early - 1, 4)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the setups that were asked for; the exit status says whether all was well."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="Many annotators.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clicks", type=int, default=10_000)
    parser.add_argument("--setup", choices=SETUPS, action="append")
    options = parser.parse_args(argv)
    outcomes = []
    for setup in options.setup or SETUPS:
        if setup == "crowd" and not shutil.which("redis-server"):
            print("crowd: left out, since redis-server is not installed")
            continue
        outcome = soak(setup, minutes=options.minutes, clicks=options.clicks)
        said = "; ".join(outcome.complaints) or "all well"
        print(f"{setup}: {outcome.clicks} clicks in {outcome.minutes} min: {said}", flush=True)
        outcomes.append(outcome)
    print(json.dumps([asdict(outcome) for outcome in outcomes]))
    return int(any(outcome.complaints for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
