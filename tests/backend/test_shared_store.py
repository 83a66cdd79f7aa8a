"""What a second process finds of the first one's work: after a restart, beside it, elsewhere."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from redis import Redis

from backend.directory_store import DirectoryStore
from backend.embedding_bytes import bytes_to_embedding, embedding_to_bytes
from backend.embeddings import EmbeddingSettings, EmbeddingStore, embedding_key
from backend.images import ImageSettings
from backend.model import ModelSettings
from backend.refinement import Refinement, RefinementSettings
from backend.store import StoreSettings
from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.granularity import Proposals
from tests.backend.conftest import (
    MakeClient,
    body,
    keypoint,
    mask_of,
    picture_bytes,
)
from tests.backend.disc_bundle import write_disc_bundle
from tests.backend.hosts import Host, Request, running

# --- an embedding as bytes ---


def make_embedding(value: float, *, version: str = "v", proposals: int = 0) -> Embedding:
    found = Proposals(
        np.full((proposals, 4), value, np.float32), np.full(proposals, value, np.float32)
    )
    return Embedding(
        image_embedding=np.full((1, 256, 4, 4), value, dtype=np.float16),
        original_size_hw=(48, 65),
        input_size_hw=(47, 64),
        input_size=64,
        bundle_version=version,
        proposals=found if proposals else None,
    )


@pytest.mark.parametrize("proposals", [0, 5])
def test_an_embedding_comes_back_from_bytes_with_all_it_knows(proposals: int) -> None:
    embedding = make_embedding(0.25, version="größer", proposals=proposals)
    again = bytes_to_embedding(embedding_to_bytes(embedding))
    assert again is not None
    for name in ("original_size_hw", "input_size_hw", "input_size", "bundle_version", "nbytes"):
        assert getattr(again, name) == getattr(embedding, name), name
    assert again.image_embedding.dtype == np.float16
    assert np.array_equal(again.image_embedding, embedding.image_embedding)
    assert (again.proposals is None) is (proposals == 0)
    if again.proposals and embedding.proposals:
        assert np.array_equal(again.proposals.boxes_xyxy, embedding.proposals.boxes_xyxy)
        assert np.array_equal(again.proposals.scores, embedding.proposals.scores)


def test_bytes_of_another_kind_are_no_embedding() -> None:
    data = embedding_to_bytes(make_embedding(1.0))
    other_names = data.replace(b"sizes", b"SIZES")
    for wrong in (b"", b"x" * 100, data[:-30], data[:100], other_names, b"\x80\x04N."):
        assert bytes_to_embedding(wrong) is None


# --- two tiers ---


def test_a_restart_finds_what_was_encoded(tmp_path: Path) -> None:
    def fail() -> Embedding:
        raise AssertionError("it was encoded already")

    key = embedding_key("image", "v")
    shared = DirectoryStore(tmp_path, 10**7)
    EmbeddingStore(EmbeddingSettings(), shared).get_or_encode(key, lambda: make_embedding(0.5))
    restarted = EmbeddingStore(EmbeddingSettings(), DirectoryStore(tmp_path, 10**7))
    embedding, outcome = restarted.get_or_encode(key, fail)
    assert (outcome, embedding.image_embedding.dtype) == ("hit", np.float32)
    assert (embedding.image_embedding == 0.5).all()
    shutil.rmtree(tmp_path)
    assert restarted.get(key) is not None  # in memory now
    assert restarted.get(embedding_key("image", "v2")) is None


def test_a_damaged_embedding_is_encoded_again(tmp_path: Path) -> None:
    for _ in range(2):
        store = EmbeddingStore(EmbeddingSettings(), DirectoryStore(tmp_path, 10**7))
        assert store.get_or_encode("k", lambda: make_embedding(0.5))[1] == "miss"
        (entry,) = tmp_path.iterdir()
        entry.write_bytes(entry.read_bytes()[:-1])


class Worker:
    """Stands in for a process that listens to a queue: puts into the shared store, or fails to."""

    def __init__(self, shared: DirectoryStore, *, answers: bool, works: bool = True) -> None:
        self.shared, self.answers, self.works, self.asked = shared, answers, works, 0

    def __call__(self) -> bool:
        self.asked += 1
        if self.works:
            self.shared.put("k", embedding_to_bytes(make_embedding(0.75)))
        return self.answers


def test_what_a_worker_encoded_is_read_and_needs_no_turn_here(tmp_path: Path) -> None:
    shared = DirectoryStore(tmp_path, 10**7)
    store, worker = (
        EmbeddingStore(EmbeddingSettings(wait_s=30), shared),
        Worker(shared, answers=True),
    )
    busy, let_go = threading.Event(), threading.Event()

    def encode_for_long() -> Embedding:
        busy.set()
        assert let_go.wait(30)
        return make_embedding(0.1)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(store.get_or_encode, "other", encode_for_long)
        assert busy.wait(30)
        embedding, outcome = store.get_or_encode(
            "k", lambda: make_embedding(0.1), ask_worker=worker
        )
        let_go.set()
        other.result()
    assert (outcome, worker.asked) == ("joined", 1)
    assert (embedding.image_embedding == 0.75).all()
    assert store.get_or_encode("k", lambda: make_embedding(0.1), ask_worker=worker)[1] == "hit"
    assert worker.asked == 1


@pytest.mark.parametrize(
    ("answers", "works"),
    [pytest.param(False, False, id="no worker"), pytest.param(True, False, id="lost its entry")],
)
def test_without_a_worker_it_is_encoded_here(tmp_path: Path, answers: bool, works: bool) -> None:
    shared = DirectoryStore(tmp_path, 10**7)
    store, worker = (
        EmbeddingStore(EmbeddingSettings(), shared),
        Worker(shared, answers=answers, works=works),
    )
    embedding, outcome = store.get_or_encode("k", lambda: make_embedding(0.5), ask_worker=worker)
    assert (outcome, worker.asked) == ("miss", 1)
    assert (embedding.image_embedding == 0.5).all()


def test_many_clicks_on_a_new_image_ask_a_worker_once(tmp_path: Path) -> None:
    shared = DirectoryStore(tmp_path, 10**7)
    store, asked, let_go = EmbeddingStore(EmbeddingSettings(), shared), [], threading.Event()

    def ask_worker() -> bool:
        asked.append(1)
        assert let_go.wait(30)
        shared.put("k", embedding_to_bytes(make_embedding(0.75)))
        return True

    def click(_: int) -> Any:
        return store.get_or_encode("k", lambda: make_embedding(0.1), ask_worker=ask_worker)

    with ThreadPoolExecutor(8) as pool:
        clicks = [pool.submit(click, n) for n in range(8)]
        while not asked:
            time.sleep(0.002)
        let_go.set()
        answers = [pending.result() for pending in clicks]
    assert len(asked) == 1
    assert all((embedding.image_embedding == 0.75).all() for embedding, _ in answers)
    assert {outcome for _, outcome in answers} <= {"joined", "hit"}


def test_while_waiting_for_a_turn_another_process_may_encode_it(tmp_path: Path) -> None:
    here, there = (
        EmbeddingStore(EmbeddingSettings(), DirectoryStore(tmp_path, 10**7)) for _ in range(2)
    )
    busy, let_go = threading.Event(), threading.Event()

    def encode_for_long() -> Embedding:
        busy.set()
        assert let_go.wait(30)
        return make_embedding(0.1)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(here.get_or_encode, "other", encode_for_long)
        assert busy.wait(30)
        waiting = pool.submit(here.get_or_encode, "k", lambda: make_embedding(0.2))
        there.get_or_encode("k", lambda: make_embedding(0.3))
        let_go.set()
        embedding, _ = waiting.result()
    assert (embedding.image_embedding == np.float16(0.3)).all()


def test_use_in_memory_keeps_an_entry_of_the_store_alive_and_brings_a_lost_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.embeddings._SHARED_AGAIN_S", -1.0)
    store = EmbeddingStore(EmbeddingSettings(), DirectoryStore(tmp_path, 10**7))
    store.get_or_encode("k", lambda: make_embedding(0.5))
    (entry,) = tmp_path.iterdir()
    os.utime(entry, (0, 0))
    store.get("k")
    assert entry.stat().st_mtime > 0
    entry.unlink()
    store.get("k")
    assert EmbeddingStore(EmbeddingSettings(), DirectoryStore(tmp_path, 10**7)).get("k") is not None


# --- nobody else's, ever ---

IMAGES, VERSIONS, CLICKS, TURNS = 6, 3, 3, 80


def _annotate_at_random(folder: Path, seed: int) -> Counter[str]:
    """Four threads of one process: encode, look up and refine, all versions side by side."""
    shared = DirectoryStore(folder, 400_000)
    # Room for two embeddings in memory, for some thirty entries in the folder.
    embeddings = EmbeddingStore(EmbeddingSettings(cache_bytes=17_000), shared)
    refinement = Refinement(RefinementSettings(cache_bytes=1000), shared)

    def work(thread: int) -> Counter[str]:
        choice, seen = random.Random(seed * 10 + thread), Counter[str]()
        for _ in range(TURNS):
            image, v, x = (choice.randrange(n) for n in (IMAGES, VERSIONS, CLICKS))
            version, value = f"version {v}", 1 + image + IMAGES * v
            key = embedding_key(f"image {image}", version)
            embedding, outcome = embeddings.get_or_encode(
                key, partial(make_embedding, value, version=version)
            )
            seen[outcome] += 1
            seen["wrong"] += embedding.bundle_version != version
            seen["wrong"] += bool((embedding.image_embedding != value).any())
            first = Prompt.from_clicks([(x, 0, 1)])
            second = Prompt.from_clicks([(x, 0, 1), (9, 9, 1)])
            earlier = refinement.extend(key, second).mask_input
            if earlier is None:
                refinement.remember(key, first, np.full((40, 40), value + 100 * x, np.float32))
            else:
                seen["refined"] += 1
                seen["wrong"] += bool((earlier != value + 100 * x).any())
        return seen

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(work, range(4)), Counter[str]())


class Vandal(threading.Thread):
    """Tears, tampers with, swaps and deletes entries of a folder until it is stopped."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.stopped, self.spoilt = folder, threading.Event(), 0

    def run(self) -> None:
        choice = random.Random(0)
        while not self.stopped.wait(0.002):
            entries = sorted(self.folder.glob("*.entry"))
            if len(entries) < 2:
                continue
            one, other = choice.sample(entries, 2)
            with contextlib.suppress(FileNotFoundError):
                whole = one.read_bytes()
                middle = choice.randrange(len(whole) + 1)
                worse = choice.choice([
                    whole[:middle],  # torn
                    whole[:middle] + b"?" + whole[middle + 1 :],  # tampered with
                    other.read_bytes(),  # another image's, version's or prompt's
                    whole.partition(b"\n")[0] + b"\n" + other.read_bytes().partition(b"\n")[2],
                    b"",
                ])  # fmt: skip
                one.write_bytes(worse)
                self.spoilt += 1


@pytest.mark.slow
def test_nobody_ever_meets_another_images_or_another_versions_entry(tmp_path: Path) -> None:
    vandal = Vandal(tmp_path)
    vandal.start()
    try:
        with multiprocessing.get_context("spawn").Pool(3) as pool:
            jobs = [(tmp_path, seed) for seed in range(3)]
            seen = sum(pool.starmap(_annotate_at_random, jobs), Counter[str]())
            pool.close()
            pool.join()
    finally:
        vandal.stopped.set()
        vandal.join()
    assert seen["wrong"] == 0
    # Or nothing was shown: entries were found, lost, refined from and spoilt, all the time.
    assert min(seen["hit"], seen["miss"], seen["refined"], vandal.spoilt) > 20
    assert not list(tmp_path.glob("*.tmp"))


# --- whole backends beside each other ---

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="tag" toName="image"><Label value="Cat"/></BrushLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels>
</View>
"""


class Versions(Host):
    """A host of one picture that may be replaced; remembers whom it sent it to."""

    def __init__(self) -> None:
        super().__init__()
        self.grey, self.sent = 40, 0

    def handle(self, request: Request) -> None:
        etag = f'"{self.grey}"'
        if request.headers.get("If-None-Match") == etag:
            request.reply(304)
            return
        self.sent += 1
        request.reply(200, picture_bytes(grey=self.grey), ETag=etag)


@pytest.fixture
def host() -> Iterator[Versions]:
    with running(Versions()) as host:
        yield host


@pytest.fixture(params=["directory", pytest.param("redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSettings:
    if request.param == "directory":
        return StoreSettings(tmp_path / "cache")
    url = request.getfixturevalue("redis_server")
    with Redis.from_url(url) as redis:
        redis.flushdb()
    return StoreSettings(url=url)  # of a machine of its own, without any folder


@pytest.fixture
def start(
    make_client: MakeClient, host: Versions, store: StoreSettings
) -> Callable[..., FlaskClient]:
    """A function that starts a backend, with nothing in memory, over the one store."""
    images = ImageSettings(allowed_hosts=("127.0.0.1",))
    return lambda **more: make_client(**{"store": store, "images": images, **more})


def encodes(client: FlaskClient) -> Callable[[], int]:
    """How many images a backend has encoded itself from now on."""
    counter = client.application.extensions["edgesam"].metrics.embedding_cache
    before = counter.labels("miss")._value.get()
    return lambda: int(counter.labels("miss")._value.get() - before)


def area(client: FlaskClient, image: str, *regions: Any) -> int:
    sent = body(*regions, config=CONFIG, image=image)
    answer = client.post("/predict", json=sent)
    assert answer.status_code == 200, answer.json
    (region,) = answer.json["results"][0]["result"]
    return int(mask_of(region).sum())


def test_a_restarted_backend_neither_fetches_nor_encodes_again(
    start: Callable[..., FlaskClient], host: Versions, store: StoreSettings
) -> None:
    click = keypoint(30, 30)
    first = area(start(), f"{host.url}/cat.png?X-Amz-Signature=1", click)
    if store.cache_dir:
        shutil.rmtree(store.cache_dir / "images")
    asked, client = len(host.seen), start()
    encoded = encodes(client)
    assert area(client, f"{host.url}/cat.png?X-Amz-Signature=2", click) == first
    assert (host.sent, len(host.seen), encoded()) == (1, asked, 0)


def test_a_replaced_image_is_noticed_by_every_backend(
    start: Callable[..., FlaskClient], host: Versions
) -> None:
    url, click, clients = f"{host.url}/cat.png", keypoint(30, 30), (start(), start())
    dark = [area(client, url, click) for client in clients]
    host.grey = 200
    assert [area(client, url, click) for client in clients] == dark  # believed for ten minutes
    later = time.time() + 601
    for client in clients:
        client.application.extensions["edgesam"].encoding._images._clock = lambda: later
    bright = [area(client, url, click) for client in clients]
    assert bright[0] == bright[1] > dark[0] == dark[1]


def test_a_swapped_model_encodes_anew_and_a_rollback_finds_its_own(
    start: Callable[..., FlaskClient], host: Versions, tmp_path: Path
) -> None:
    url, click = f"{host.url}/cat.png", keypoint(30, 30)
    write_disc_bundle(tmp_path / "new", input_size=320)
    first = area(start(), url, click)
    new = start(model=ModelSettings(name=str(tmp_path / "new"), threads=1))
    encoded = encodes(new)
    area(new, url, click)
    assert encoded() == 1
    back = start()
    encoded = encodes(back)
    assert area(back, url, click) == first
    assert encoded() == 0


def test_the_next_click_may_reach_any_process(
    start: Callable[..., FlaskClient], host: Versions
) -> None:
    # The stand-in's discs grow by 2 input pixels where it is given a mask input.
    url, one, two = f"{host.url}/cat.png", keypoint(30, 30), keypoint(60, 60)
    alone = area(start(), url, one, two)
    area(start(), url, one)
    assert area(start(), url, one, two) > alone
