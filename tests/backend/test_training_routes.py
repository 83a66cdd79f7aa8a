"""Training over HTTP, with the trainer in a process of its own, or behind Redis."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis

from backend.app import create_app
from backend.auth import AuthSettings
from backend.queues import TRAINERS, QueueSettings, add_sign_of_life, listening, redis_time
from backend.run_progress import snapshot_of
from backend.run_state import Budget
from backend.settings import Settings
from backend.training import Training, TrainingSettings
from backend.versions import VersionSettings
from edgesam_core.errors import TrainingUnavailable
from tests import parts, servers
from tests.backend.hosts import running
from tests.backend.test_auth import GUARDED
from tests.backend.test_snapshot import LabelledProject, cat, dog
from tests.backend.test_trainer import held_pid, is_alive
from tests.backend.training_ground import BETTER, PROJECT, Ground
from tests.backend.workers import MortalRedis, wait_until

WEBHOOK = {"action": "START_TRAINING", "project": {"id": PROJECT, "title": "cats"}}
AT_ONCE_S = 1.0


@pytest.fixture
def label_studio() -> Iterator[LabelledProject]:
    with running(LabelledProject()) as host:
        assert isinstance(host, LabelledProject)
        for task_id in range(1, 31):
            host.add(task_id, cat(), dog())
        yield host


@pytest.fixture
def ground(
    tmp_path: Path, label_studio: LabelledProject, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ground]:
    """Where this process and those that it starts have one environment."""
    ground = Ground(tmp_path)
    environ = ground.environ(
        LABEL_STUDIO_URL=label_studio.url, LABEL_STUDIO_API_KEY=label_studio.legacy
    )
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    yield ground
    for run in ground.runs.unfinished():
        ground.runs.cancel(run.job)
    wait_until(lambda: not ground.runs.unfinished(), "the end of all runs")


MakeClient = Callable[..., FlaskClient]


@pytest.fixture
def serve(ground: Ground) -> Iterator[MakeClient]:
    """A function (settings by section) that makes an application; its trainers are buried."""
    made: list[Training] = []

    def make(**sections: Any) -> FlaskClient:
        app = create_app(replace(Settings.from_env(), **sections))
        app.testing = False
        made.append(app.extensions["edgesam"].training)
        return app.test_client()

    yield make
    for run in ground.runs.unfinished():
        ground.runs.cancel(run.job)
    for training in made:
        training.stop()
        for process in training._started_here.values():
            process.wait(60)


@pytest.fixture
def client(serve: MakeClient) -> FlaskClient:
    return serve()


def done(client: FlaskClient, job: str) -> dict[str, Any]:
    """How a run ended."""
    wait_until(lambda: client.get(f"/train/{job}").json["state"] == "done", "the end of the run")
    found: dict[str, Any] = client.get(f"/train/{job}").json
    return found


# --- triggers ---


@pytest.mark.parametrize(
    ("path", "sent", "why"),
    [
        pytest.param("/train", {"project": PROJECT}, "/train", id="train"),
        pytest.param("/webhook", WEBHOOK, "Start Training", id="button"),
        pytest.param(
            "/train", {"project": f"{PROJECT}.1795229737", "annotations": [], "params": {}},
            "/train", id="the older button",
        ),
    ],
)  # fmt: skip
def test_every_trigger_starts_a_run_that_ends_with_a_served_version(
    ground: Ground, client: FlaskClient, path: str, sent: Any, why: str
) -> None:
    answer = client.post(path, json=sent)
    assert answer.status_code in (200, 201)
    ended = done(client, answer.json["job"])
    assert (ended["outcome"], ended["reason"], ended["why"]) == ("promoted", BETTER, why)
    assert ended["gate"]["promote"] is True
    assert (ended["step"], ended["steps"], ended["eta_min"]) == (6, 6, 0)
    assert ended["losses"] == {"loss": pytest.approx(1 / 6)}
    assert ended["held_out"] == [{"step": 3, "box": 0.7}]
    assert ended["snapshot"]["tasks"] == 30
    assert "annotation_ids" not in ended["snapshot"]
    assert snapshot_of(ground.folder) is None
    assert ground.served == ended["version"]


def test_a_second_request_joins_the_first_whoever_asks(ground: Ground, client: FlaskClient) -> None:
    ground.hold("training")
    first = client.post("/train", json={"project": PROJECT, "options": {"steps": 4, "minutes": 2}})
    assert (first.status_code, first.json["joined"], first.json["steps"]) == (201, False, 4)
    held_pid(ground)
    again = client.post("/train", json={"project": PROJECT})
    assert (again.status_code, again.json["joined"]) == (200, True)
    assert client.post("/webhook", json=WEBHOOK).json["job"] == first.json["job"]
    assert again.json["job"] == first.json["job"]
    shown = client.get(f"/train/{first.json['job']}").json
    assert (shown["state"], shown["stage"], shown["step"]) == ("running", "training", 3)
    assert client.get(f"/is_training?project={PROJECT}").json["is_training"] is True
    assert client.get(f"/is_training?project={PROJECT + 1}").json["is_training"] is False
    assert client.get("/train").json["runs"][0]["job"] == first.json["job"]
    ground.release()
    assert done(client, first.json["job"])["outcome"] == "promoted"
    assert client.get("/is_training").json["is_training"] is False


def annotated(**annotation: Any) -> dict[str, Any]:
    return {
        "action": "ANNOTATION_CREATED",
        "project": {"id": PROJECT},
        "annotation": {"id": 1, "task": 4, "result": [{"type": "brushlabels"}], **annotation},
    }


def test_enough_accepted_annotations_start_a_run(ground: Ground, serve: MakeClient) -> None:
    counting = replace(Settings.from_env().training, every_annotations=3)
    first, second = serve(training=counting), serve(training=counting)  # two web processes
    first.post("/webhook", json=annotated())
    second.post("/webhook", json=annotated())
    second.post("/webhook", json=annotated(was_cancelled=True))
    second.post("/webhook", json=annotated(result=[]))
    assert ground.runs.of() == []
    assert first.post("/webhook", json=annotated()).status_code == 200
    (run,) = ground.runs.of()
    assert run.why == "3 annotations"


def test_by_default_annotations_start_nothing(ground: Ground, client: FlaskClient) -> None:
    for _ in range(5):
        assert client.post("/webhook", json=annotated()).json["status"] == "ignored"
    assert ground.runs.of() == []


def test_annotations_never_fail_a_webhook(ground: Ground, serve: MakeClient) -> None:
    client = serve(training=TrainingSettings(python=Path("/nowhere"), every_annotations=1))
    assert client.post("/webhook", json=annotated()).status_code == 200
    assert ground.runs.of() == []


@pytest.mark.parametrize(
    "sent", [{}, {"project": None}, {"project": "cats"}, {"project": 3, "options": [1]},
             {"project": 3, "options": {"gpu": 1}}, {"project": 3, "options": {"steps": -1}}],
)  # fmt: skip
def test_a_request_that_cannot_be_understood_starts_nothing(
    ground: Ground, client: FlaskClient, sent: Any
) -> None:
    answer = client.post("/train", json=sent)
    assert answer.status_code == 400
    assert answer.json["error"].endswith(".")
    assert ground.runs.of() == []


# --- where it cannot be ---


@pytest.mark.parametrize("path", ["/train", "/webhook"])
def test_without_the_environment_the_sentence_names_the_command(
    ground: Ground, serve: MakeClient, path: str
) -> None:
    client = serve(training=TrainingSettings(python=ground.folder / "nowhere"))
    answer = client.post(path, json={**WEBHOOK, "project": {"id": 3}} if path == "/webhook" else
                         {"project": 3})  # fmt: skip
    assert answer.status_code == 503
    assert "make setup-train" in answer.json["error"]
    assert ground.runs.of() == []


def test_without_a_folder_the_sentence_names_the_setting(serve: MakeClient) -> None:
    answer = serve(versions=VersionSettings()).post("/train", json={"project": 3})
    assert answer.status_code == 503
    assert "EDGESAM_DATA_DIR" in answer.json["error"]


def test_a_model_without_weights_is_not_trained(ground: Ground, client: FlaskClient) -> None:
    (ground.base / "weights.safetensors").unlink()
    answer = client.post("/train", json={"project": 3})
    assert answer.status_code == 503
    assert "weights.safetensors" in answer.json["error"]
    assert ground.runs.of() == []


def test_a_folder_that_cannot_be_written_has_its_sentence(
    ground: Ground, client: FlaskClient
) -> None:
    ground.data_dir.write_text("a file where the folder should be")
    answer = client.post("/train", json={"project": 3})
    assert answer.status_code == 503
    assert "cannot be written" in answer.json["error"]
    assert str(ground.folder) not in answer.json["error"]
    ground.data_dir.unlink()


# --- bad input: each its sentence, and the incumbent serves on ---


def refuse_all(host: LabelledProject, ground: Ground) -> None:
    host.legacy_enabled = False


def nothing_labelled(host: LabelledProject, ground: Ground) -> None:
    host.tasks.clear()


def one_task(host: LabelledProject, ground: Ground) -> None:
    for task_id in range(2, 31):
        del host.tasks[task_id]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(refuse_all, "token", id="refused token"),
        pytest.param(nothing_labelled, "annotat", id="no annotations"),
        pytest.param(one_task, "task", id="one task"),
    ],
)
def test_a_project_that_cannot_be_learnt_from_says_why(
    ground: Ground, label_studio: LabelledProject, client: FlaskClient, spoil: Any, said: str
) -> None:
    incumbent = ground.versions.add(PROJECT, ground.other, "earlier")
    ground.versions.promote(PROJECT, incumbent, "earlier")
    spoil(label_studio, ground)
    job = client.post("/webhook", json=WEBHOOK).json["job"]
    ended = done(client, job)
    assert ended["outcome"] == "failed"
    assert said in ended["reason"]
    assert ended["reason"].endswith(".")
    assert ground.served == incumbent
    assert ground.calls == []
    status = client.post("/job_status", json={"job": job}).json
    assert (status["job_status"], status["error"]) == ("failed", ended["reason"])


def test_a_label_studio_that_is_away_says_so_at_the_end_and_holds_up_nobody(
    ground: Ground, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", f"http://127.0.0.1:{servers.free_port()}")
    begun = time.monotonic()
    job = client.post("/webhook", json=WEBHOOK).json["job"]
    assert time.monotonic() - begun < AT_ONCE_S * 5, "it waited for Label Studio"
    ended = done(client, job)
    assert ended["outcome"] == "failed"
    assert "LABEL_STUDIO_URL" in ended["reason"]
    assert ground.served is None


# --- job_status, in Label Studio's words ---


def test_the_connector_follows_a_job(ground: Ground, client: FlaskClient) -> None:
    ground.hold("training")
    job = client.post("/webhook", json=WEBHOOK).json["job"]
    held_pid(ground)
    assert client.post("/job_status", json={"job": job}).json["job_status"] == "started"
    ground.release()
    ended = done(client, job)
    status = client.get(f"/job_status?job={job}").json
    assert status["job_status"] == "finished"
    assert status["result"] == {"model_version": ended["version"], "job": job, "reason": BETTER}
    assert status["created_at"] < status["ended_at"]
    for unknown in ({"job": "3-20200101T000000000000"}, {"job": "../x"}, {}):
        assert client.post("/job_status", json=unknown).status_code == 410
    assert client.get("/train/3-20200101T000000000000").status_code == 404


# --- cancel ---


def test_delete_cancels(ground: Ground, client: FlaskClient) -> None:
    ground.hold("training")
    job = client.post("/train", json={"project": PROJECT}).json["job"]
    child = held_pid(ground)
    assert client.delete(f"/train/{job}").status_code == 200
    assert done(client, job)["outcome"] == "cancelled"
    assert not is_alive(child)
    assert client.post("/job_status", json={"job": job}).json["job_status"] == "canceled"
    assert client.delete(f"/train/{job}").json["outcome"] == "cancelled"
    assert client.delete("/train/3-20200101T000000000000").status_code == 404


# --- versions ---


def test_versions_are_all_where_no_project_is_named(ground: Ground, client: FlaskClient) -> None:
    own = ground.version(ground.base)
    assert client.get("/versions").json == {"versions": [own]}
    mine = ground.versions.add(PROJECT, ground.challenger, "trained")
    other = ground.versions.add(PROJECT + 1, ground.other, "trained")
    assert sorted(client.get("/versions").json["versions"]) == sorted([own, mine, other])
    of_project = client.get(f"/versions?project={PROJECT}").json
    assert (of_project["versions"], of_project["current"]) == ([own, mine], own)
    assert of_project["history"][0]["event"] == "added"
    asked = client.post("/versions", json={"project": f"{PROJECT}.179"}).json
    assert asked["versions"] == [own, mine]


def test_promote_and_rollback(ground: Ground, client: FlaskClient) -> None:
    own = ground.version(ground.base)
    mine = ground.versions.add(PROJECT, ground.challenger, "trained")
    answer = client.post(f"/versions/{mine}/promote", json={"project": PROJECT})
    assert answer.json == {"project": PROJECT, "version": mine}
    assert ground.served == mine
    assert client.get(f"/is_training?project={PROJECT}").json["model_version"] == mine
    assert client.post("/rollback", json={"project": PROJECT}).json["version"] == own
    assert ground.served is None
    assert client.post("/rollback", json={"project": PROJECT}).status_code == 400
    assert client.post("/rollback", json={}).status_code == 400
    assert client.post(f"/versions/{mine}/promote", json={}).status_code == 400
    unknown = client.post("/versions/0123456789ab/promote", json={"project": PROJECT})
    assert (unknown.status_code, unknown.json["code"]) == (404, "no_such_version")


def test_the_servers_own_model_can_be_promoted_like_any_other(
    ground: Ground, client: FlaskClient
) -> None:
    own = ground.version(ground.base)
    mine = ground.versions.add(PROJECT, ground.challenger, "trained")
    ground.versions.promote(PROJECT, mine, "trained")
    client.post(f"/versions/{own}/promote", json={"project": PROJECT})
    assert ground.served == own
    assert client.post("/rollback", json={"project": PROJECT}).json["version"] == mine


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.7", "edgesam.example"])
def test_what_changes_who_is_served_is_guarded_beyond_loopback(
    serve: MakeClient, method: str, path: str, address: str
) -> None:
    listening_there = {"SERVER_NAME": address}
    body: Any = {"json": {"project": PROJECT}} if method == "POST" else {}
    refused = serve().open(path, method=method, environ_overrides=listening_there, **body)
    assert (refused.status_code, refused.json["code"]) == (403, "guarded")
    assert "BASIC_AUTH_USER" in refused.json["error"]
    auth = AuthSettings(basic_auth_user="u", basic_auth_pass="p")
    admitted = serve(auth=auth).open(
        path, method=method, environ_overrides=listening_there, auth=("u", "p"), **body
    )
    assert admitted.status_code in (400, 404)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_nobody_has_to_sign_in(client: FlaskClient, address: str) -> None:
    answer = client.post(
        "/rollback", json={"project": PROJECT}, environ_overrides={"SERVER_NAME": address}
    )
    assert answer.status_code == 400, "nothing was served before"


def test_a_socket_of_unix_counts_as_reachable(client: FlaskClient) -> None:
    """Its SERVER_NAME is whatever the caller wrote into Host."""
    environ = {"SERVER_NAME": "localhost", "REMOTE_ADDR": ""}
    answer = client.post("/rollback", json={"project": PROJECT}, environ_overrides=environ)
    assert answer.status_code == 403


@pytest.mark.slow
def test_gunicorn_tells_where_it_listens(ground: Ground) -> None:
    environ = {**ground.environ(), "HOST": "0.0.0.0"}
    with servers.running_backend(ground.base, ground.folder, environ) as backend:
        command = ["curl", "-s", "-X", "POST", "-H", "Content-Type: application/json"]
        told = subprocess.run(
            [*command, "-d", '{"project": 3}', f"{backend.url}/rollback"],
            capture_output=True,
            text=True,
        )
    assert json.loads(told.stdout)["code"] == "guarded"


# --- without Redis: a process that outlives this one, and is started again ---


def test_a_trainer_that_was_killed_is_started_again(ground: Ground, client: FlaskClient) -> None:
    training: Training = client.application.extensions["edgesam"].training
    ground.hold("training")
    job = client.post("/train", json={"project": PROJECT}).json["job"]
    child = held_pid(ground)
    training.look()
    assert len(training._started_here) == 1, "it is carried out"
    process = training._started_here[job]
    process.kill()
    process.wait()
    wait_until(lambda: not ground.runs.is_carried_out(job), "the end of its stage")
    assert not is_alive(child)
    assert client.get(f"/train/{job}").json["state"] == "interrupted"
    ground.release()
    training.look()
    ended = done(client, job)
    assert (ended["outcome"], ended["attempts"]) == ("promoted", 2)


def test_a_request_starts_an_interrupted_run_again(ground: Ground, client: FlaskClient) -> None:
    run = ground.runs.save(replace(ground.request(), stage="training", attempts=1))
    (waiting,) = ground.runs.unfinished()
    answer = client.post("/train", json={"project": PROJECT}).json
    assert (answer["job"], answer["joined"], run) == (waiting.job, True, None)
    assert done(client, waiting.job)["outcome"] == "promoted"


def test_runs_are_looked_after_once_the_server_starts(ground: Ground, client: FlaskClient) -> None:
    ground.runs.save(replace(ground.request(), stage="training", attempts=1))
    (waiting,) = ground.runs.unfinished()
    client.application.extensions["edgesam"].training.start()
    assert done(client, waiting.job)["outcome"] == "promoted"


# --- with Redis ---


@pytest.fixture
def mortal_redis(tmp_path: Path) -> Iterator[MortalRedis]:
    redis = MortalRedis(tmp_path)
    redis.start()
    yield redis
    redis.kill()


class TrainerProcess:
    """`make trainer`."""

    def __init__(self, ground: Ground, redis: MortalRedis) -> None:
        self._client = redis.client()
        before = listening(self._client, TRAINERS)
        environ = {**os.environ, "REDIS_URL": redis.url}
        with (ground.folder / "trainer.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "backend.trainer"],
                cwd=parts.REPOSITORY, env=environ, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(lambda: listening(self._client, TRAINERS) - before, "the trainer's first beat")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(60)


@pytest.fixture
def start_trainer(ground: Ground, mortal_redis: MortalRedis) -> Iterator[Callable[[], Any]]:
    started: list[TrainerProcess] = []

    def start() -> TrainerProcess:
        started.append(TrainerProcess(ground, mortal_redis))
        return started[-1]

    yield start
    for run in ground.runs.unfinished():
        ground.runs.cancel(run.job)
    for trainer in started:
        if trainer.process.poll() is None:
            trainer.end()


@pytest.fixture
def queueing(serve: MakeClient, mortal_redis: MortalRedis) -> FlaskClient:
    """A server that cannot train itself."""
    return serve(
        queues=QueueSettings(mortal_redis.url),
        training=TrainingSettings(python=Path("/nowhere")),
    )


@pytest.mark.redis
def test_a_trainer_that_listens_takes_the_run(
    ground: Ground, queueing: FlaskClient, start_trainer: Callable[[], Any],
    mortal_redis: MortalRedis,
) -> None:  # fmt: skip
    assert queueing.post("/train", json={"project": PROJECT}).status_code == 503
    start_trainer()
    assert not listening(mortal_redis.client()), "it encodes nothing"
    job = queueing.post("/train", json={"project": PROJECT}).json["job"]
    assert done(queueing, job)["outcome"] == "promoted"
    assert ground.calls == ["project_stage", "gate"]


@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["told", "killed"])
def test_a_trainer_that_goes_leaves_its_run_to_the_next(
    ground: Ground, queueing: FlaskClient, start_trainer: Callable[[], Any], number: signal.Signals
) -> None:
    ground.hold("training")
    first = start_trainer()
    job = queueing.post("/train", json={"project": PROJECT}).json["job"]
    child = held_pid(ground)
    first.end(number)
    wait_until(lambda: not is_alive(child), "the end of the stage")
    assert not ground.runs.find(job).is_done
    ground.release()
    start_trainer()
    ended = done(queueing, job)
    assert (ended["outcome"], ended["attempts"]) == ("promoted", 2)


@pytest.mark.redis
@pytest.mark.slow
def test_a_redis_that_goes_away_and_comes_back_empty_loses_no_run(
    ground: Ground, queueing: FlaskClient, start_trainer: Callable[[], Any],
    mortal_redis: MortalRedis,
) -> None:  # fmt: skip
    ground.hold("training")
    start_trainer()
    job = queueing.post("/train", json={"project": PROJECT}).json["job"]
    held_pid(ground)
    mortal_redis.kill()
    shown = queueing.get(f"/train/{job}").json
    assert shown["state"] == "running"
    assert queueing.post("/train", json={"project": PROJECT}).json["job"] == job
    mortal_redis.start()
    ground.release()
    assert done(queueing, job)["outcome"] == "promoted"
    client: Redis = mortal_redis.client()
    wait_until(lambda: listening(client, TRAINERS), "the trainer's return")
    again = queueing.post("/train", json={"project": PROJECT}).json["job"]
    assert done(queueing, again)["outcome"] == "promoted"


@pytest.mark.redis
def test_a_run_that_redis_has_forgotten_is_queued_again(
    ground: Ground, queueing: FlaskClient, mortal_redis: MortalRedis,
    start_trainer: Callable[[], Any],
) -> None:  # fmt: skip
    client = mortal_redis.client()
    with client.pipeline() as pipeline:
        add_sign_of_life(pipeline, "a trainer", at=redis_time(client), role=TRAINERS)
        pipeline.execute()
    job = queueing.post("/train", json={"project": PROJECT}).json["job"]
    assert queueing.get(f"/train/{job}").json["state"] == "queued"
    assert client.llen("rq:queue:training") == 1
    client.flushall()
    start_trainer()
    queueing.application.extensions["edgesam"].training.look()
    queueing.application.extensions["edgesam"].training.look()
    assert done(queueing, job)["outcome"] == "promoted"


@pytest.mark.redis
def test_where_no_trainer_listens_this_machine_trains(
    ground: Ground, serve: MakeClient, mortal_redis: MortalRedis
) -> None:
    client = serve(queues=QueueSettings(mortal_redis.url))
    job = client.post("/train", json={"project": PROJECT}).json["job"]
    assert done(client, job)["outcome"] == "promoted"


@pytest.mark.redis
def test_a_redis_that_hangs_holds_up_nobody(ground: Ground) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        nobody = TrainingSettings(python=Path("/nowhere"))
        training = Training(nobody, ground.runs, ground.model, QueueSettings(url))
        begun = time.monotonic()
        with pytest.raises(TrainingUnavailable, match="make setup-train"):
            training.request(PROJECT, Budget())
        assert time.monotonic() - begun < AT_ONCE_S * 5
