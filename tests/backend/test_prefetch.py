"""What Label Studio's calls make warm, with its list of tasks and its pictures over real HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from backend.encoding import Ahead
from backend.images import ImageSettings
from backend.jobs import EncodeRequest
from backend.label_studio import LabelStudioClient, LabelStudioSettings
from backend.metrics import Metrics
from backend.prefetch import ASKED_AGAIN_S, MOST_BYTES, MOST_SIGNALS, Prefetch, PrefetchSettings
from backend.queues import QueueSettings
from backend.store import StoreSettings
from edgesam_core.errors import EdgeSamError
from tests.backend.conftest import (
    BRUSH_CONFIG,
    MakeClient,
    body,
    keypoint,
    picture_bytes,
    picture_uri,
    recorded,
)
from tests.backend.hosts import FakeLabelStudio, Request, running
from tests.backend.workers import MortalRedis, running_worker, wait_until
from tests.parts import REPOSITORY


class TaskList(FakeLabelStudio):
    """Label Studio with one project of ten tasks, as `/api/tasks` lists them (1.23.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[int, dict[str, Any]] = {}
        self.labelled: set[int] = set()
        self.questions: list[tuple[int, int]] = []
        # (after, count) of each
        self.files["/api/tasks"] = self.list_tasks
        for task_id in range(1, 11):
            self.add(task_id)

    def add(self, task_id: int) -> None:
        path = f"/data/upload/1/{task_id}.png"
        self.tasks[task_id] = {"id": task_id, "data": {"image": path}}
        picture = picture_bytes(grey=10 * task_id)
        self.files[path] = lambda request: request.reply(200, picture)

    def list_tasks(self, request: Request) -> None:
        larger, unlabelled = self.query_of(request)["filters"]["items"]
        assert larger["filter"] == "filter:tasks:id"
        wanted = ("filter:tasks:completed_at", "empty")
        assert (unlabelled["filter"], unlabelled["operator"]) == wanted
        self.reply_tasks(request, larger["value"], but=self.labelled)

    def query_of(self, request: Request) -> dict[str, Any]:
        query: dict[str, Any] = json.loads(request.query("query"))
        return query

    def reply_tasks(self, request: Request, after: int, but: Set[int] = frozenset()) -> None:
        count = int(request.query("page_size"))
        self.questions.append((after, count))
        ids = [task_id for task_id in sorted(self.tasks) if task_id > after and task_id not in but]
        tasks = [self.tasks[task_id] for task_id in ids[:count]]
        request.reply_json(200, {"tasks": tasks, "total": len(ids)})

    def fetched(self) -> list[int]:
        """The tasks whose pictures were fetched, in order."""
        return [int(Path(path).stem) for path in self.paths() if path.endswith(".png")]


@pytest.fixture
def label_studio() -> Iterator[TaskList]:
    with running(TaskList()) as host:
        assert isinstance(host, TaskList)
        yield host


@pytest.fixture
def client(label_studio: TaskList, make_client: MakeClient) -> FlaskClient:
    """A server that encodes three tasks ahead."""
    return make_client(
        label_studio=LabelStudioSettings(label_studio.url, label_studio.legacy),
        prefetch=PrefetchSettings(next_tasks=3),
    )


def counted(client: FlaskClient, counter: str) -> dict[str, int]:
    """Outcomes of a counter that occurred."""
    for family in text_string_to_metric_families(client.get("/metrics").text):
        if family.name == counter:
            return {
                sample.labels["outcome"]: int(sample.value)
                for sample in family.samples
                if sample.name == f"{counter}_total" and sample.value
            }
    raise AssertionError(f"no counter {counter}")


def wait_for(client: FlaskClient, **outcomes: int) -> None:
    """Return once prefetches ended like this, and the thread with them."""
    wait_until(lambda: counted(client, "edgesam_prefetches") == outcomes, f"{outcomes}")
    prefetch = client.application.extensions["edgesam"].prefetch
    wait_until(lambda: prefetch._thread is None, "the end of the thread")


def opened(*tasks: dict[str, Any]) -> dict[str, Any]:
    """The body of the /predict that Label Studio sends when a task is opened."""
    return {
        "tasks": list(tasks),
        "project": "1.1795229737",
        "label_config": BRUSH_CONFIG,
        "params": {"login": None, "password": None, "context": None},
    }


def click(client: FlaskClient, task: dict[str, Any]) -> None:
    answer = client.post("/predict", json={**body(keypoint(50, 50)), "tasks": [task]})
    assert answer.status_code == 200, answer.json
    assert answer.json["results"][0]["result"]


def webhook(client: FlaskClient, action: str, **more: Any) -> None:
    project = {"id": 1, "label_config": BRUSH_CONFIG}
    answer = client.post("/webhook", json={"action": action, "project": project, **more})
    assert answer.status_code == 200


# --- signals ---


def test_an_opened_task_and_the_next_ones_are_warm(
    client: FlaskClient, label_studio: TaskList
) -> None:
    label_studio.labelled = {4}
    (prediction,) = client.post("/predict", json=opened(label_studio.tasks[2])).json["results"]
    assert prediction["result"] == []
    wait_for(client, encoded=4)
    assert label_studio.fetched() == [2, 3, 5, 6]
    for task_id in (2, 3, 5, 6):
        click(client, label_studio.tasks[task_id])
    assert counted(client, "edgesam_embedding_cache") == {"hit": 4}


def test_a_click_makes_the_next_tasks_warm_and_asks_for_them_once(
    client: FlaskClient, label_studio: TaskList
) -> None:
    for _ in range(3):
        click(client, label_studio.tasks[1])
    wait_for(client, encoded=3)
    assert label_studio.questions == [(1, 3)]
    assert label_studio.fetched() == [1, 2, 3, 4]


def test_behind_the_last_task_come_the_first_that_are_not_labelled(
    client: FlaskClient, label_studio: TaskList
) -> None:
    label_studio.labelled = {1}
    click(client, label_studio.tasks[9])
    wait_for(client, encoded=3)
    assert label_studio.fetched() == [9, 10, 2, 3]


def test_a_new_annotation_makes_the_next_tasks_warm(
    client: FlaskClient, label_studio: TaskList, shared: Path
) -> None:
    hook = recorded(shared, "webhook_annotation_created")["body"]
    task_id = hook["annotation"]["task"]
    label_studio.add(task_id + 1)
    assert client.post("/webhook", json=hook).status_code == 200
    wait_for(client, encoded=3)
    assert label_studio.fetched() == [task_id + 1, 1, 2]


def test_imported_tasks_make_the_first_ones_warm(
    client: FlaskClient, label_studio: TaskList, shared: Path
) -> None:
    hook = recorded(shared, "webhook_tasks_created")["body"]
    assert client.post("/webhook", json=hook).status_code == 200
    wait_for(client, encoded=3)
    assert label_studio.fetched() == [1, 2, 3]


def test_retrieving_predictions_of_many_tasks_encodes_these_and_no_others(
    client: FlaskClient, label_studio: TaskList
) -> None:
    tasks = [label_studio.tasks[i] for i in (7, 3, 5)]
    answer = client.post("/predict", json=opened(*tasks, {"id": 99, "data": {}}))
    assert [result["result"] for result in answer.json["results"]] == [[], [], [], []]
    wait_for(client, encoded=3)
    assert label_studio.fetched() == [7, 3, 5]
    assert label_studio.questions == []


def test_a_prewarm_makes_the_next_tasks_warm_too(
    client: FlaskClient, label_studio: TaskList
) -> None:
    sent = opened(label_studio.tasks[4]) | {"params": {"context": {"event": "prewarm"}}}
    (prediction,) = client.post("/predict", json=sent).json["results"]
    assert prediction["result"][0]["type"] == "prewarm_ack"
    wait_for(client, encoded=4)
    assert label_studio.fetched() == [4, 5, 6, 7]


def test_all_pages_of_a_task_are_encoded(client: FlaskClient) -> None:
    config = BRUSH_CONFIG.replace('value="$image"', 'valueList="$pages"')
    pages = {"pages": [picture_uri(grey=40), picture_uri(grey=80)]}
    client.post("/predict", json={**opened({"id": 1, "data": pages}), "label_config": config})
    wait_until(
        lambda: counted(client, "edgesam_prefetches").get("encoded", 0) >= 2, "both pages' encodes"
    )


@pytest.mark.parametrize(
    "hook",
    [
        {"action": "ANNOTATION_CREATED"},
        {"action": "ANNOTATION_CREATED", "project": {"id": True}, "annotation": {"task": 1}},
        {"action": "ANNOTATION_CREATED", "project": {"id": 1}, "annotation": {"task": "1"}},
        {"action": "TASKS_CREATED", "project": [1]},
        {"action": "PROJECT_UPDATED", "project": {"id": 1}},
    ],
)
def test_a_webhook_of_another_form_says_nothing(
    client: FlaskClient, label_studio: TaskList, hook: dict[str, Any]
) -> None:
    assert client.post("/webhook", json=hook).status_code == 200
    assert client.application.extensions["edgesam"].prefetch._thread is None
    assert label_studio.seen == []


# --- costs ---


def test_a_warm_image_is_not_fetched_again(
    label_studio: TaskList, make_client: MakeClient, tmp_path: Path
) -> None:
    def serve() -> FlaskClient:
        return make_client(
            label_studio=LabelStudioSettings(label_studio.url, label_studio.legacy),
            images=ImageSettings(cache_bytes=0),
            store=StoreSettings(cache_dir=tmp_path),
        )

    tasks = [label_studio.tasks[i] for i in (1, 2, 3)]
    for outcome in ("encoded", "warm"):  # the second after a restart
        client = serve()
        client.post("/predict", json=opened(*tasks))
        wait_for(client, **{outcome: 3})
    assert label_studio.fetched() == [1, 2, 3]


def test_a_label_studio_that_hangs_delays_no_answer(
    client: FlaskClient, label_studio: TaskList
) -> None:
    let_go = threading.Event()

    def hang(request: Request) -> None:
        let_go.wait(60)
        request.reply_json(200, {"tasks": []})

    label_studio.files["/api/tasks"] = hang
    webhook(client, "TASKS_CREATED", tasks=[])
    click(client, label_studio.tasks[1])
    webhook(client, "ANNOTATION_CREATED", annotation={"task": 2})
    assert counted(client, "edgesam_embedding_cache") == {"miss": 1}
    let_go.set()
    wait_for(client)


def test_what_fails_is_counted_and_the_next_image_is_encoded(
    client: FlaskClient, label_studio: TaskList, caplog: pytest.LogCaptureFixture
) -> None:
    label_studio.files["/data/upload/1/2.png"] = lambda request: request.reply(200, b"no image")
    label_studio.files["/api/tasks"] = lambda request: request.reply_json(200, ["other"])
    client.post("/predict", json=opened(*[label_studio.tasks[i] for i in (1, 2, 3)]))
    wait_for(client, encoded=2, failed=1)
    assert "Not encoded ahead of a click: The file is no image" in caplog.text
    webhook(client, "TASKS_CREATED", tasks=[])
    wait_for(client, encoded=2, failed=1)
    assert "form that is not known" in caplog.text


def test_without_a_token_only_the_opened_task_is_encoded(
    label_studio: TaskList, make_client: MakeClient
) -> None:
    client = make_client(label_studio=LabelStudioSettings(label_studio.url))
    client.post("/predict", json=opened({"id": 1, "data": {"image": picture_uri()}}))
    wait_for(client, encoded=1)
    assert label_studio.seen == []


# --- the thread ---


class Encodes:
    """Its images wait until they are let go."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.has_begun = threading.Event()
        self.let_go = threading.Event()

    def images_of(
        self, project_id: object, tasks: Any, label_config: object
    ) -> list[EncodeRequest]:
        return [EncodeRequest(task["data"], task["id"], None, "v", False) for task in tasks]

    def ahead(self, request: EncodeRequest) -> Ahead:
        self.has_begun.set()
        self.let_go.wait(60)
        if request.uri == "broken":
            raise EdgeSamError
        self.done.append(request.uri)
        return "encoded"


@pytest.fixture
def encodes() -> Encodes:
    return Encodes()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def prefetch(encodes: Encodes, metrics: Metrics) -> Iterator[Prefetch]:
    client = LabelStudioClient(LabelStudioSettings("http://127.0.0.1:1"))
    prefetch = Prefetch(encodes.images_of, encodes.ahead, client, PrefetchSettings(), metrics)
    yield prefetch
    encodes.let_go.set()
    prefetch.close()


def see(prefetch: Prefetch, *uris: str) -> None:
    prefetch.opened(1, [{"id": n, "data": uri} for n, uri in enumerate(uris)], BRUSH_CONFIG)


def test_the_newest_signal_comes_first(prefetch: Prefetch, encodes: Encodes) -> None:
    see(prefetch, "a1", "a2")
    assert encodes.has_begun.wait(60)
    see(prefetch, "b1", "b2")
    see(prefetch, "c1", "c2")
    encodes.let_go.set()
    wait_until(lambda: len(encodes.done) == 6, "six encodes")
    assert encodes.done == ["a1", "c1", "c2", "b1", "b2", "a2"]


def test_the_oldest_signals_are_dropped(
    prefetch: Prefetch, encodes: Encodes, metrics: Metrics
) -> None:
    see(prefetch, "first", "second")
    assert encodes.has_begun.wait(60)
    for number in range(MOST_SIGNALS):
        see(prefetch, f"later{number}", "x")
    encodes.let_go.set()
    wait_until(lambda: len(encodes.done) == 1 + 2 * MOST_SIGNALS, "the others' encodes")
    assert "second" not in encodes.done
    assert 'edgesam_prefetches_total{outcome="dropped"} 1.0' in metrics.text().decode()


def test_images_inside_tasks_wait_up_to_a_limit_of_bytes(
    prefetch: Prefetch, encodes: Encodes
) -> None:
    large = "x" * (MOST_BYTES // 3)
    see(prefetch, large, large + "2", large + "3", "beyond")
    assert encodes.has_begun.wait(60)
    see(prefetch, large + "4", large + "5")
    encodes.let_go.set()
    wait_until(lambda: len(encodes.done) == 3, "three encodes")
    assert encodes.done == [large, large + "4", large + "5"]


def test_a_thread_that_failed_goes_on_and_ends_when_nothing_is_left(
    prefetch: Prefetch, encodes: Encodes
) -> None:
    encodes.let_go.set()
    for name in ("a", "b"):
        see(prefetch, "broken", name)
        wait_until(lambda: prefetch._thread is None, "the end of the thread")
    assert encodes.done == ["a", "b"]


def test_closing_leaves_what_waits(prefetch: Prefetch, encodes: Encodes) -> None:
    see(prefetch, "a", "b", "c")
    assert encodes.has_begun.wait(60)
    closing = threading.Thread(target=prefetch.close)
    closing.start()
    wait_until(lambda: not prefetch._signals, "that nothing waits")
    encodes.let_go.set()
    closing.join()
    see(prefetch, "d")
    assert prefetch._thread is None
    assert encodes.done == ["a"]


def test_label_studio_is_asked_again_after_a_while(label_studio: TaskList) -> None:
    now = [1000.0]
    encodes = Encodes()
    encodes.let_go.set()
    client = LabelStudioClient(LabelStudioSettings(label_studio.url, label_studio.legacy))
    prefetch = Prefetch(
        encodes.images_of,
        encodes.ahead,
        client,
        PrefetchSettings(2),
        Metrics(),
        clock=lambda: now[0],
    )

    def work(then: Callable[[], None]) -> list[tuple[int, int]]:
        then()
        wait_until(lambda: prefetch._thread is None, "the end of the thread")
        return label_studio.questions

    assert work(lambda: prefetch.worked_on(1, 4, BRUSH_CONFIG)) == [(4, 2)]
    now[0] += ASKED_AGAIN_S - 1
    assert work(lambda: prefetch.worked_on(1, 4, BRUSH_CONFIG)) == [(4, 2)]
    assert work(lambda: prefetch.worked_on(1, 5, BRUSH_CONFIG)) == [(4, 2), (5, 2)]
    now[0] += 1
    assert len(work(lambda: prefetch.worked_on(1, 4, BRUSH_CONFIG))) == 3


def test_a_process_that_has_no_more_threads_answers_all_the_same(
    client: FlaskClient, label_studio: TaskList, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.application.extensions["edgesam"].models.own.segmenter()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert client.post("/predict", json=opened(label_studio.tasks[1])).status_code == 200
    webhook(client, "TASKS_CREATED")
    wait_for(client, encoded=4, warm=3)  # of this signal 1, 2, 3; of the earlier one 1; 2, 3, 4


@pytest.mark.slow
def test_a_process_ends_in_the_middle_of_encoding_ahead(disc_bundle: Path) -> None:
    program = f"""
from backend.app import create_app
from backend.model import ModelSettings
from backend.settings import Settings
from tests.backend.conftest import picture_uri
from tests.backend.test_prefetch import opened
from tests.backend.workers import wait_until

app = create_app(Settings(model=ModelSettings(name={str(disc_bundle)!r}, threads=1)))
tasks = [{{"id": n, "data": {{"image": picture_uri(grey=n)}}}} for n in range(200)]
assert app.test_client().post("/predict", json=opened(*tasks)).status_code == 200
service = app.extensions["edgesam"]
none = b'prefetches_total{{outcome="encoded"}} 0.0'
wait_until(lambda: none not in service.metrics.text(), "the first encode")
print("ends")
"""
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (told.returncode, told.stdout) == (0, "ends\n"), told.stderr
    assert "Traceback" not in told.stderr
    assert 1 <= told.stderr.count(": encoded in") < 200


# --- with workers ---


@pytest.mark.redis
@pytest.mark.slow
def test_workers_encode_ahead_and_the_click_is_warm(
    label_studio: TaskList, make_client: MakeClient, disc_bundle: Path, tmp_path: Path
) -> None:
    redis = MortalRedis(tmp_path)
    redis.start()
    environ = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.legacy}
    try:
        with running_worker(disc_bundle, redis.url, tmp_path, **environ):
            client = make_client(
                label_studio=LabelStudioSettings(label_studio.url, label_studio.legacy),
                prefetch=PrefetchSettings(next_tasks=3),
                store=StoreSettings(cache_dir=tmp_path / "cache"),
                queues=QueueSettings(redis_url=redis.url),
            )
            client.post("/predict", json=opened(label_studio.tasks[1]))
            wait_for(client, queued=4)
            log = tmp_path / "worker.log"
            wait_until(lambda: log.read_text().count(": encoded in") == 4, "four jobs")
            for task_id in (1, 2, 3, 4):
                click(client, label_studio.tasks[task_id])
            assert counted(client, "edgesam_embedding_cache") == {"hit": 4}
    finally:
        redis.kill()
