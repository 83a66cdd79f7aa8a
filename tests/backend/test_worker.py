"""Workers as processes of their own, with a Redis that dies and pictures that take long."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest
from flask.testing import FlaskClient
from onnx import parser

from backend.app import create_app
from backend.images import ImageSettings
from backend.jobs import Jobs, job_id_of
from backend.metrics import Metrics
from backend.model import ModelSettings
from backend.queues import QueueSettings, listening, redis_time
from backend.rq_worker import EncoderWorker
from backend.settings import Settings
from backend.store import StoreSettings
from backend.worker import main, serve
from edgesam_core.bundle import Bundle, write_manifest
from tests.backend.conftest import body, keypoint, mask_of, picture_bytes
from tests.backend.disc_bundle import write_disc_bundle
from tests.backend.hosts import Host, Request, running
from tests.backend.spies import count_calls
from tests.backend.workers import MortalRedis, request, running_worker, wait_until

pytestmark = pytest.mark.redis


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[MortalRedis]:
    server = MortalRedis(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disc bundle, which takes minutes for a bright picture; the one it is tried with is dark.

    The encoder counts to a number that grows with the picture's mean before it answers. For ONNX
    Runtime alone: OpenVINO does not open such a graph within minutes.
    """
    folder = write_disc_bundle(tmp_path_factory.mktemp("bundles") / "slow")
    encoder = onnx.load(folder / "encoder.onnx")
    counting = parser.parse_graph("""
        counting (float[1,3,S,S] image) => (float[1,1,s,s] grey_at_last) {
            mean = ReduceMean <keepdims = 0> (image)
            scale = Constant <value_float = 1e8> ()
            scaled = Mul (mean, scale)
            whole = Cast <to = 7> (scaled)
            go_on = Constant <value = bool {1}> ()
            grey_at_last = Loop (whole, go_on, grey) <body = step (
                int64 i, bool go_on_in, float[1,1,s,s] grey_in
            ) => (bool go_on_out, float[1,1,s,s] grey_out) {
                go_on_out = Identity (go_on_in)
                grey_out = Identity (grey_in)
            }>
        }
    """)
    at = [node.output[0] for node in encoder.graph.node].index("grey") + 1
    for node in encoder.graph.node[at:]:
        node.input[:] = ["grey_at_last" if name == "grey" else name for name in node.input]
    for offset, node in enumerate(counting.node):
        encoder.graph.node.insert(at + offset, node)
    onnx.checker.check_model(encoder)
    onnx.save(encoder, folder / "encoder.onnx")
    write_manifest(
        folder,
        name="slow",
        input_size=256,
        upsample="bilinear",
        refines_with_mask_input=True,
        licence="Apache-2.0",
        origin="Made by a test.",
    )
    return folder


class Pictures(Host):
    """Any number of pictures; the request for one of them may be held back."""

    def __init__(self) -> None:
        super().__init__()
        self.held_from: int | None = None  # the request of this number and all later ones
        self.let_go = threading.Event()

    def handle(self, asked: Request) -> None:
        self.seen.append((asked.path, {}))
        if self.held_from is not None and len(self.seen) >= self.held_from:
            self.let_go.wait(60)
        grey = 50 + int(asked.path.strip("/")) % 200
        asked.reply(200, picture_bytes(grey=grey), Content_Type="image/png")


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    host = Pictures()
    with running(host):
        yield host
        host.let_go.set()


class Web:
    """A web process: its client, and how often it encoded by itself."""

    def __init__(self, bundle: Path, redis: MortalRedis, store: StoreSettings) -> None:
        settings = Settings(
            model=ModelSettings(name=str(bundle), threads=1),
            queues=QueueSettings(redis_url=redis.url, worker_wait_s=40),
            store=store,
            images=ImageSettings(allowed_hosts=("127.0.0.1",)),
        )
        self.client: FlaskClient = create_app(settings).test_client()
        self.service = self.client.application.extensions["edgesam"]
        self.encoded = count_calls(self.service.models.own.segmenter(), "embed")

    def click(self, address: str) -> Any:
        answer = self.client.application.test_client().post(
            "/predict", json=body(keypoint(50, 50), image=address)
        )
        assert answer.status_code == 200, answer.json
        (region,) = answer.json["results"][0]["result"]
        assert mask_of(region).any()
        return region

    def jobs(self) -> dict[str, int]:
        """How many jobs ended how."""
        samples = self.service.metrics.encode_jobs.collect()[0].samples
        return {s.labels["outcome"]: int(s.value) for s in samples if "total" in s.name and s.value}


def on_one_machine(folder: Path) -> StoreSettings:
    """The store that `running_worker` has."""
    return StoreSettings(cache_dir=folder / "cache")


def test_a_worker_encodes_for_all_web_processes(disc_bundle, redis, pictures, tmp_path):
    with running_worker(disc_bundle, redis.url, tmp_path):
        webs = [Web(disc_bundle, redis, on_one_machine(tmp_path)) for _ in range(2)]
        addresses = [f"{pictures.url}/{n}" for n in range(4)]
        with ThreadPoolExecutor(8) as pool:
            turns = [(web, address) for address in addresses for web in webs]
            answers = list(pool.map(lambda turn: turn[0].click(turn[1]), turns))
    assert [web.encoded() for web in webs] == [0, 0]
    areas = [int(mask_of(region).sum()) for region in answers]
    assert areas[0::2] == areas[1::2]
    log = (tmp_path / "worker.log").read_text()
    assert log.count(" encoded in ") == 4
    assert "encode task 4: encoded in" in log
    assert pictures.url not in log


def test_a_worker_without_redis_says_what_it_needs(capsys):
    assert main() == 1
    assert "set REDIS_URL" in capsys.readouterr().err


def test_a_worker_that_redis_refuses_says_why_and_not_that_it_listens(
    redis, caplog, monkeypatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("backend.worker._REDIS_PAUSE_S", 0.0)
    redis.client().config_set("requirepass", "secret")
    tried: list[object] = []

    def make_worker(*given: Any) -> EncoderWorker:
        if tried:
            raise KeyboardInterrupt
        tried.append(given)
        return EncoderWorker(*given)

    with pytest.raises(KeyboardInterrupt):
        serve(redis.url, {}, make_worker)
    assert "already authenticated" in caplog.text
    assert "listening" not in caplog.text


def test_a_worker_that_is_told_to_stop_is_gone_at_once(disc_bundle, redis, tmp_path):
    with running_worker(disc_bundle, redis.url, tmp_path) as worker:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert not listening(redis.client())


def test_a_worker_with_another_model_leaves_the_click_to_the_web_process(
    disc_bundle, redis, pictures, tmp_path
):
    another = write_disc_bundle(tmp_path / "another", input_size=320)
    with running_worker(another, redis.url, tmp_path):
        web = Web(disc_bundle, redis, on_one_machine(tmp_path))
        web.click(f"{pictures.url}/1")
    assert (web.encoded(), web.jobs()) == (1, {"failed": 1})
    assert "Start workers and servers with the same MODEL" in (tmp_path / "worker.log").read_text()


def test_a_worker_with_another_store_is_told_to_the_operator(
    disc_bundle, redis, pictures, tmp_path, caplog
):
    with running_worker(disc_bundle, redis.url, tmp_path):
        web = Web(disc_bundle, redis, StoreSettings(cache_dir=tmp_path / "another"))
        web.click(f"{pictures.url}/1")
    assert (web.encoded(), web.jobs()) == (1, {"encoded": 1})
    assert "Give servers and workers the same EDGESAM_CACHE_DIR" in caplog.text


@pytest.mark.slow
def test_redis_killed_and_restarted_between_clicks_is_noticed_by_no_annotator(
    disc_bundle, redis, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr("backend.jobs._REDIS_PAUSE_S", 0.0)
    with running_worker(disc_bundle, redis.url, tmp_path):
        web = Web(disc_bundle, redis, on_one_machine(tmp_path))
        web.click(f"{pictures.url}/1")
        redis.kill()
        web.click(f"{pictures.url}/2")
        web.click(f"{pictures.url}/1")
        assert (web.encoded(), web.jobs()) == (1, {"encoded": 1, "no_redis": 1})
        redis.start()
        wait_until(lambda: listening(redis.client()), "the worker's return")
        web.click(f"{pictures.url}/3")
        assert (web.encoded(), web.jobs()) == (1, {"encoded": 2, "no_redis": 1})


@pytest.mark.slow
def test_redis_killed_during_a_job_loses_neither_click_nor_worker(
    disc_bundle, redis, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr("backend.jobs._REDIS_PAUSE_S", 0.0)
    elsewhere = MortalRedis(tmp_path)
    elsewhere.start()
    store = StoreSettings(url=elsewhere.url)
    pictures.held_from = 2  # the web process fetches it, then the worker of another machine
    try:
        with running_worker(disc_bundle, redis.url, tmp_path, EDGESAM_STORE_URL=elsewhere.url):
            web = Web(disc_bundle, redis, store)
            click = in_background(lambda: web.click(f"{pictures.url}/1"))
            wait_until(lambda: len(pictures.seen) == 2, "the worker's fetch")
            redis.kill()
            click.result()
            assert (web.encoded(), web.jobs()) == (1, {"no_redis": 1})
            pictures.let_go.set()
            redis.start()
            wait_until(lambda: listening(redis.client()), "the worker's return")
            web.click(f"{pictures.url}/2")
            assert (web.encoded(), web.jobs()) == (1, {"encoded": 1, "no_redis": 1})
    finally:
        elsewhere.kill()


@pytest.mark.slow
def test_a_worker_killed_during_a_click_is_noticed_by_no_annotator(
    disc_bundle, redis, pictures, tmp_path
):
    elsewhere = MortalRedis(tmp_path)
    elsewhere.start()
    pictures.held_from = 2
    try:
        with running_worker(
            disc_bundle, redis.url, tmp_path, EDGESAM_STORE_URL=elsewhere.url
        ) as worker:
            web = Web(disc_bundle, redis, StoreSettings(url=elsewhere.url))
            click = in_background(lambda: web.click(f"{pictures.url}/1"))
            wait_until(lambda: len(pictures.seen) == 2, "the worker's fetch")
            worker.kill()
            click.result()
        ((outcome, _),) = web.jobs().items()
        assert web.encoded() == 1
        assert outcome in ("lost", "no_worker")
    finally:
        elsewhere.kill()


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_an_encode_leaves_its_job_to_another(
    slow_bundle, redis, pictures, tmp_path
):
    client, runtime = redis.client(), {"EDGESAM_RUNTIME": "onnxruntime"}
    jobs = Jobs(QueueSettings(redis_url=redis.url, worker_wait_s=50), Metrics())
    image = request(f"{pictures.url}/199", version=Bundle.open(slow_bundle).manifest.version)
    with running_worker(slow_bundle, redis.url, tmp_path, **runtime) as worker:
        click = in_background(lambda: jobs.encode(image, key="key"))
        wait_until(lambda: jobs._look(job_id_of("key"))[0] == "started", "the job's start")
        wait_until(lambda: pictures.seen, "the fetch")
        fetched_at = redis_time(client)

        def has_lived_on() -> bool:
            ((_, alive_at),) = client.zrange("edgesam:encoders", 0, -1, withscores=True)
            return bool(alive_at > fetched_at + 1.5)

        wait_until(has_lived_on, "a sign of life from the middle of the encode")
        worker.kill()
    assert not click.result()
    ((outcome, _),) = outcomes(jobs).items()
    assert outcome in ("lost", "no_worker")
    (begun,) = client.zrange("rq:wip:interactive", 0, -1)
    client.zadd("rq:wip:interactive", {begun: 1})  # time passes
    with running_worker(slow_bundle, redis.url, tmp_path, **runtime):
        wait_until(lambda: jobs._look(job_id_of("key"))[0] == "scheduled", "the second attempt")


def outcomes(jobs: Jobs) -> dict[str, int]:
    samples = next(iter(jobs._metrics.encode_jobs.collect())).samples
    return {s.labels["outcome"]: int(s.value) for s in samples if s.value and "total" in s.name}


def in_background(function: Any) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future
