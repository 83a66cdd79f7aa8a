from __future__ import annotations

import json
import logging
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now

from backend import jobs as jobs_module
from backend.jobs import ENCODE, EncodeRequest, Jobs, job_id_of
from backend.logs import Complaints
from backend.metrics import Metrics
from backend.queues import (
    INTERACTIVE,
    PREFETCH,
    QueueSettings,
    add_sign_of_life,
    connect,
    listening,
    redis_time,
)
from backend.rq_worker import EncoderWorker
from edgesam_core.errors import ImageError, UpstreamError
from tests.backend.workers import request, wait_until

KEY = "0123:version:1"


@pytest.fixture
def redis(redis_server: str) -> Iterator[Redis]:
    client = connect(redis_server, timeout_s=5)
    client.flushall()
    yield client
    client.config_set("maxmemory-policy", "noeviction")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A worker in this process leaves its handlers behind."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def make_jobs(url: str | None, **settings: Any) -> Jobs:
    return Jobs(QueueSettings(redis_url=url, **settings), Metrics())


def outcomes(jobs: Jobs) -> dict[str, int]:
    samples = next(iter(jobs._metrics.encode_jobs.collect())).samples
    return {s.labels["outcome"]: int(s.value) for s in samples if s.value and "total" in s.name}


def pretend_worker(redis: Redis, name: str = "elsewhere") -> None:
    """A worker that is alive for the next seconds and takes no job."""
    with redis.pipeline() as pipeline:
        add_sign_of_life(pipeline, name, at=redis_time(redis))
        pipeline.execute()


def queue(redis: Redis, name: str) -> Queue:
    return Queue(name, connection=redis, serializer=JSONSerializer)


def make_worker(url: str, function: Callable[..., str]) -> EncoderWorker:
    return EncoderWorker(
        url, {ENCODE: function}, Complaints(logging.getLogger("backend.rq_worker"))
    )


def work(url: str, function: Callable[..., str], jobs: int = 1) -> None:
    """Be a worker in this process until so many jobs are done."""
    make_worker(url, function).work(logging_level="WARNING", max_jobs=jobs)


def work_off(url: str, function: Callable[..., str]) -> None:
    """Be a worker in this process until the queues are empty."""
    make_worker(url, function).work(logging_level="WARNING", burst=True)


def in_background(function: Callable[[], Any]) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future


def test_without_redis_nobody_is_asked():
    jobs = make_jobs(None)
    assert not jobs.enabled
    assert not jobs.encode(request(), key=KEY)
    assert not jobs.prefetch(request(), key=KEY)


def test_a_redis_that_is_not_there_is_told_once_and_left_alone(free_port, caplog, monkeypatch):
    jobs = make_jobs(f"redis://127.0.0.1:{free_port}/0")
    with caplog.at_level(logging.WARNING, logger="backend.jobs"):
        assert not jobs.encode(request(), key=KEY)
        monkeypatch.setattr(jobs, "_workers", lambda: pytest.fail("asked again"))
        assert not jobs.encode(request(), key=KEY)
    assert outcomes(jobs) == {"no_redis": 2}
    (message,) = caplog.messages
    assert message.endswith("images are encoded in this process.")


def test_a_redis_that_hangs_does_not_hang_a_click():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        jobs = make_jobs(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0", worker_wait_s=60)
        started = time.monotonic()
        assert not jobs.encode(request(), key=KEY)
        assert time.monotonic() - started < 30  # it would wait 60 s for a worker; takes about one
    assert outcomes(jobs) == {"no_redis": 1}


@pytest.mark.redis
class TestWithRedis:
    def test_no_worker_means_no_job_and_no_waiting(self, redis, redis_server):
        jobs = make_jobs(redis_server)
        assert not jobs.encode(request(), key=KEY)
        assert not jobs.prefetch(request(), key=KEY)
        assert outcomes(jobs) == {"no_worker": 1}
        assert not redis.exists(Job.key_for(job_id_of(KEY)))

    def test_many_processes_that_ask_for_one_image_share_one_job(self, redis, redis_server):
        pretend_worker(redis)
        asking = [make_jobs(redis_server) for _ in range(8)]
        encoded: list[dict[str, Any]] = []

        def encode(**fields: Any) -> str:
            encoded.append(fields)
            time.sleep(0.2)  # some still wait, and look again, meanwhile
            return "encoded"

        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(jobs.encode, request(), key=KEY) for jobs in asking]
            wait_until(lambda: len(queue(redis, INTERACTIVE)), "the job")
            work_off(redis_server, encode)
            assert all(answer.result() for answer in answers)
        assert len(encoded) == 1
        assert EncodeRequest(**encoded[0]) == request()

    def test_a_click_that_finds_its_image_being_encoded_waits_for_that_job(
        self, redis, redis_server
    ):
        late: list[Future[bool]] = []

        def encode(**_: Any) -> str:
            asked = make_jobs(redis_server)
            late.append(in_background(lambda: asked.encode(request(), key=KEY)))
            time.sleep(0.3)
            assert not late[0].done()
            return "encoded"

        pretend_worker(redis)
        first = in_background(lambda: make_jobs(redis_server).encode(request(), key=KEY))
        wait_until(lambda: len(queue(redis, INTERACTIVE)), "the job")
        work_off(redis_server, encode)
        assert first.result()
        assert late[0].result()

    def test_a_prefetch_that_a_click_wants_comes_first(self, redis, redis_server):
        pretend_worker(redis)
        jobs, order = make_jobs(redis_server), []
        for n in range(3):
            assert jobs.prefetch(request(task_id=n), key=f"key {n}")
        assert jobs.prefetch(request(task_id=1), key="key 1")  # known already
        assert len(queue(redis, PREFETCH)) == 3
        click = in_background(lambda: jobs.encode(request(task_id=2), key="key 2"))
        wait_until(lambda: len(queue(redis, INTERACTIVE)), "the move")
        assert queue(redis, PREFETCH).job_ids == [job_id_of("key 0"), job_id_of("key 1")]
        work_off(redis_server, lambda **fields: order.append(fields["task_id"]) or "encoded")
        assert click.result()
        assert order == [2, 0, 1]

    def test_a_job_carries_ids_and_paths_as_json(self, redis, redis_server):
        pretend_worker(redis)
        assert make_jobs(redis_server).prefetch(request(), key=KEY)
        stored = redis.hgetall(Job.key_for(job_id_of(KEY)))
        function, _, args, fields = json.loads(zlib.decompress(stored[b"data"]))
        assert (function, args) == (ENCODE, [])
        assert EncodeRequest(**fields) == request()
        assert fields["uri"] not in stored[b"description"].decode()

    def test_an_image_that_came_with_the_request_is_not_sent(self, redis, redis_server):
        pretend_worker(redis)
        jobs, inline = make_jobs(redis_server), request("data:image/png;base64,AAAA")
        assert not jobs.encode(inline, key=KEY)
        assert not jobs.prefetch(inline, key=KEY)
        assert not redis.exists(Job.key_for(job_id_of(KEY)))

    def test_a_failed_job_is_kept_with_its_reason_and_not_tried_at_once(
        self, redis, redis_server, caplog, monkeypatch
    ):
        calls = []

        def encode(**_: Any) -> str:
            calls.append(1)
            if len(calls) == 1:
                raise ImageError("The image is empty. Upload it again.")
            return "encoded"

        pretend_worker(redis)
        jobs = make_jobs(redis_server)
        with caplog.at_level(logging.INFO, logger="backend.rq_worker"):
            click = in_background(lambda: jobs.encode(request(), key=KEY))
            work(redis_server, encode)
            assert not click.result()
        failed = queue(redis, INTERACTIVE).failed_job_registry
        assert failed.get_job_ids() == [job_id_of(KEY)]
        job = Job.fetch(job_id_of(KEY), connection=redis, serializer=JSONSerializer)
        assert job.latest_result().exc_string == "The image is empty. Upload it again."
        (line,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert "encode an image of task 4: failed after" in line.message
        assert not line.exc_info

        pretend_worker(redis)
        assert not jobs.encode(request(), key=KEY)
        assert len(calls) == 1

        monkeypatch.setattr(jobs_module, "_FAILED_PAUSE_S", -1)
        click = in_background(lambda: jobs.encode(request(), key=KEY))
        work(redis_server, encode)
        assert click.result()
        assert not failed.get_job_ids()

    def test_what_may_pass_is_tried_again_later(self, redis, redis_server, monkeypatch):
        monkeypatch.setattr(jobs_module, "RETRY_AFTER_S", (1, 1))
        calls = []

        def encode(**_: Any) -> str:
            calls.append(1)
            if len(calls) == 1:
                raise UpstreamError
            return "encoded"

        pretend_worker(redis)
        jobs = make_jobs(redis_server)
        click = in_background(lambda: jobs.encode(request(), key=KEY))
        work(redis_server, encode)
        assert not click.result()
        assert not jobs.encode(request(), key=KEY)  # it waits for its time; the click does not

        def again() -> bool:
            work_off(redis_server, encode)
            return len(calls) == 2

        wait_until(again, "the second attempt")
        assert not redis.exists(Job.key_for(job_id_of(KEY)))

    def test_a_job_that_takes_too_long_ends_with_a_sentence(self, redis, redis_server, monkeypatch):
        monkeypatch.setattr(jobs_module, "JOB_TIMEOUT_S", 1)
        monkeypatch.setattr(jobs_module, "RETRY_AFTER_S", (100,))
        pretend_worker(redis)
        make_jobs(redis_server).prefetch(request(), key=KEY)
        never = threading.Event()
        started = time.monotonic()
        work(redis_server, lambda **_: str(never.wait(60)))
        assert time.monotonic() - started < 50
        assert make_jobs(redis_server)._look(job_id_of(KEY))[0] == "scheduled"

    def test_a_worker_runs_nothing_but_what_it_offers(self, redis, redis_server, caplog):
        job = queue(redis, INTERACTIVE).enqueue("os.getcwd", job_id="x", result_ttl=0)
        work(redis_server, lambda **_: pytest.fail("not asked for"))
        reason = job.latest_result().exc_string
        assert reason == "This worker does not run jobs of this name."

    def test_a_click_does_not_wait_for_a_worker_that_died(self, redis, redis_server):
        pretend_worker(redis, "alive")
        jobs = make_jobs(redis_server, worker_wait_s=60)
        assert jobs.prefetch(request(), key=KEY)
        queue(redis, PREFETCH).remove(job_id_of(KEY))
        redis.hset(
            Job.key_for(job_id_of(KEY)), mapping={"status": "started", "worker_name": "dead"}
        )
        assert not jobs.encode(request(), key=KEY)
        assert outcomes(jobs) == {"lost": 1}

    def test_a_job_that_vanished_on_its_way_to_a_worker_is_made_anew(self, redis, redis_server):
        keep_alive = threading.Event()

        def beat() -> None:
            while not keep_alive.wait(0.5):
                pretend_worker(redis)

        pretend_worker(redis)
        jobs = make_jobs(redis_server, worker_wait_s=60)
        assert jobs.prefetch(request(), key=KEY)
        queue(redis, PREFETCH).pop_job_id()
        beating = in_background(beat)
        try:
            assert not jobs.encode(request(), key=KEY)
        finally:
            keep_alive.set()
            beating.result()
        assert outcomes(jobs) == {"lost": 1}
        assert jobs.prefetch(request(), key=KEY)
        assert queue(redis, PREFETCH).job_ids == [job_id_of(KEY)]

    def test_what_a_dead_worker_had_begun_is_tried_again_by_another(self, redis, redis_server):
        pretend_worker(redis)
        make_jobs(redis_server).prefetch(request(), key=KEY)
        dead = make_worker(redis_server, lambda **_: "encoded")
        dead.register_birth()
        job, _ = dead.dequeue_job_and_maintain_ttl(1)
        dead.prepare_execution(job)
        dead.prepare_job_execution(job)
        dead._has_ended.set()  # without a word to anybody
        dead._beats.join()
        registry = job.started_job_registry
        (entry, ends_at), *_ = redis.zrange(registry.key, 0, -1, withscores=True)
        assert ends_at - redis_time(redis) < 30  # RQ itself would wait for the job's timeout
        redis.zadd(registry.key, {entry: 1})  # time passes
        work_off(redis_server, lambda **_: pytest.fail("before its pause is over"))
        scheduled = queue(redis, PREFETCH).scheduled_job_registry
        assert scheduled.get_job_ids() == [job.id]
        redis.zadd(scheduled.key, {job.id: 1})  # more time passes
        encoded = []
        work_off(redis_server, lambda **_: encoded.append(1) or "encoded")
        assert encoded == [1]
        assert not redis.exists(job.key)

    def test_a_worker_that_hangs_beyond_all_signals_is_silent(self, redis, redis_server):
        pretend_worker(redis)
        make_jobs(redis_server).prefetch(request(), key=KEY)
        redis.delete("edgesam:encoders")
        worker = make_worker(redis_server, lambda **_: "encoded")
        worker.birth_date = worker.last_heartbeat = now()
        job, _ = worker.dequeue_job_and_maintain_ttl(1)
        execution = worker.prepare_execution(job)
        assert len(listening(redis)) == 1
        redis.delete("edgesam:encoders")
        worker._running = job, execution, time.monotonic() - 1000
        worker._beat()
        assert not listening(redis)

    def test_an_image_that_every_worker_dies_of_is_given_up_with_a_sentence(
        self, redis, redis_server
    ):
        pretend_worker(redis)
        make_jobs(redis_server).prefetch(request(), key=KEY)
        dead = make_worker(redis_server, lambda **_: "encoded")
        job, _ = dead.dequeue_job_and_maintain_ttl(1)
        job.retries_left = 0
        job.save()
        dead.prepare_job_execution(job)
        redis.zadd(job.started_job_registry.key, {f"{job.id}:execution": 1})
        work_off(redis_server, lambda **_: pytest.fail("once more"))
        assert "workers that had this job died" in job.latest_result().exc_string
        assert queue(redis, PREFETCH).failed_job_registry.get_job_ids() == [job.id]

    def test_a_worker_is_known_while_it_works_and_gone_when_it_ends(self, redis, redis_server):
        pretend_worker(redis)
        make_jobs(redis_server).prefetch(request(), key=KEY)
        redis.delete("edgesam:encoders")
        seen: list[int] = []
        work(redis_server, lambda **_: seen.append(len(listening(redis))) or "encoded")
        assert seen == [1]
        assert not listening(redis)

    def test_a_silent_worker_does_not_count(self, redis):
        pretend_worker(redis, "young")
        with redis.pipeline() as pipeline:
            add_sign_of_life(pipeline, "old", at=redis_time(redis) - 60)
            pipeline.execute()
        assert listening(redis) == {"young"}

    def test_a_policy_that_may_drop_jobs_is_told(self, redis, redis_server, caplog):
        redis.config_set("maxmemory-policy", "allkeys-lru")
        with caplog.at_level(logging.WARNING, logger="backend.jobs"):
            make_jobs(redis_server).encode(request(), key=KEY)
        assert "eviction policy allkeys-lru" in caplog.messages[0]
        assert caplog.messages[0].endswith("Set its maxmemory-policy to noeviction.")
