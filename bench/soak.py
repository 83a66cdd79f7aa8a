"""``make soak``: many annotators at once on a real server, for minutes; is any of them wronged?

16 annotators click without a pause on 8 pictures (soak_pictures.py). Some wait for each answer,
some send the next click of an object at once, as Label Studio's page does. The server has room for
fewer embeddings than there are pictures, so that encodes go on all the time. It is asked

    errors          is every click answered with 200, or with 409 where a newer one took its place,
                    and every health check with 200?
    wrong masks     is every mask the one that a server of its own gave for this picture and prompt?
    memory          does it stay within 5 % of what it was after the first fifth of the time?
    health          does Label Studio's health check get its answer in time?

once of one web process, as ``make serve`` starts it, and once of two with Redis and a worker. The
last line is JSON; the status is 1 where an answer is no.

    python -m bench.soak [--minutes 10] [--clicks 10000] [--setup alone|crowd]

Everything listens on loopback. The run ends when both minutes and clicks are reached, or when it
has failed beyond doubt.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import requests

from bench.annotator import HEALTH_EVERY_S, image_host
from bench.soak_pictures import Drawn, draw, is_right, mask_in, right_answers
from tests.backend.workers import running_worker
from tests.parts import find_redis_server
from tests.servers import RunningBackend, running_backend, running_redis

ANNOTATORS = 16
PICTURES = 8

HEALTH_LIMIT_S = 1.0  # Label Studio's patience
MEMORY_LIMIT = 0.05
HOPELESS = 100
"""With more errors or wrong masks than this a run has failed, and how is known."""

SETUPS = ("alone", "crowd")
ROOM = {
    "EDGESAM_EMBEDDING_CACHE_BYTES": "1000000",  # 3 embeddings at input size 384
    "EDGESAM_STORE_BYTES": "2000000",  # and 5, or their like in earlier logits
}


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

    @property
    def is_hopeless(self) -> bool:
        """Whether going on would show nothing new."""
        return self.errors.total() > HOPELESS or self.wrong_masks > HOPELESS


class Crowd:
    """The annotators, Label Studio that asks for health, and what they were answered.

    All stop when the block ends that it is entered for.
    """

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
        self._people = ThreadPoolExecutor(ANNOTATORS + 1)
        self._senders = ThreadPoolExecutor(2 * ANNOTATORS)
        self._at_work: list[Future[None]] = []
        self._local = threading.local()
        self._is_over = threading.Event()
        self.click_ms: list[float] = []
        self.health_ms: list[float] = []

    def __enter__(self) -> Crowd:
        """Everybody begins."""
        self._at_work = [self._people.submit(self._annotate, n) for n in range(ANNOTATORS)]
        self._at_work.append(self._people.submit(self._ask_for_health))
        return self

    def __exit__(self, *_: object) -> None:
        """Everybody stops; raises what stopped somebody before."""
        self._is_over.set()
        self._people.shutdown()
        self._senders.shutdown()
        for one in self._at_work:
            one.result()

    @property
    def is_complete(self) -> bool:
        """Whether nobody has stopped, which only a mistake of this file's makes them do."""
        return not any(one.done() for one in self._at_work)

    def _annotate(self, number: int) -> None:
        """Click until it is over: on any object, then a correction, at once or after the mask."""
        rng = random.Random(1000 + number)
        while not self._is_over.is_set():
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

    def _click(self, drawn: Drawn, ids: Sequence[str], last: int) -> None:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        started = time.perf_counter()
        error, is_superseded, is_wrong = "", False, False
        try:
            answer = self._local.session.post(
                self._url + "/predict", json=drawn.request(ids), timeout=100
            )
            if answer.status_code == 409 and len(ids) < last:
                is_superseded = True
            elif answer.status_code != 200:
                error = f"{answer.status_code} {answer.json().get('code')}"
            else:
                is_wrong = not is_right(drawn, len(ids), mask_in(answer.json()))
        except (requests.RequestException, ValueError, LookupError, TypeError) as exc:
            error = type(exc).__name__
        taken_ms = (time.perf_counter() - started) * 1000
        with self._lock:
            self._outcome.clicks += 1
            self._outcome.superseded += is_superseded
            self._outcome.wrong_masks += is_wrong
            self._outcome.errors.update([error] if error else [])
            self.click_ms.append(taken_ms)

    def _ask_for_health(self) -> None:
        """Ten times a second, on a new connection each time, as Label Studio does at its worst."""
        while True:
            started = time.perf_counter()
            error = ""
            try:
                requests.get(self._url + "/health", timeout=10).raise_for_status()
            except requests.RequestException as exc:
                error = f"health check: {type(exc).__name__}"
            with self._lock:
                self._outcome.errors.update([error] if error else [])
                self.health_ms.append((time.perf_counter() - started) * 1000)
            if self._is_over.wait(HEALTH_EVERY_S):
                return


def memory_mb(pids: Sequence[int]) -> float:
    """What processes and their children hold: pages that they share count once (PSS).

    Raises:
        OSError: One of them is gone.
    """
    total_kb = 0
    for pid in pids:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (str(pid), *children):
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total_kb += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
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
    memory: list[float] = []
    with ExitStack() as stack:
        host = stack.enter_context(image_host(photos))
        known = right_answers(host, pictures)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server, pids = stack.enter_context(running_setup(setup, folder, host))
        crowd = stack.enter_context(Crowd(server.url, known, outcome))
        started = time.monotonic()
        while crowd.is_complete and not outcome.is_hopeless:
            time.sleep(1)
            try:
                memory.append(memory_mb(pids))
            except OSError:
                outcome.errors["a process of the server is gone"] += 1
                break
            outcome.minutes = round((time.monotonic() - started) / 60, 2)
            if outcome.minutes >= minutes and outcome.clicks >= clicks:
                break
    outcome.click_ms = _spread(crowd.click_ms)
    outcome.health_ms = _spread(crowd.health_ms)
    if memory:
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
