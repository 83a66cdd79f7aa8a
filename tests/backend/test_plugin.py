from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from backend import plugin
from backend.engine import Engine
from backend.plugin import EdgeSAMBackend
from backend.queues import QueueSettings
from backend.runs import Runs
from backend.training import Training
from edgesam_core.errors import RequestError
from tests.backend.conftest import BRUSH_CONFIG, body, keypoint
from tests.backend.training_ground import Ground
from tests.parts import REPOSITORY

SENT = body(keypoint(50, 50))
CONTEXT = SENT["params"]["context"]
WEBHOOK = {"project": {"id": 3, "title": "x"}}


@pytest.fixture
def engine(client: FlaskClient) -> Engine:
    found: Engine = client.application.extensions["edgesam"].engine
    return found


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    """One that starts runs which nobody carries out."""
    ground = Ground(tmp_path)
    monkeypatch.setattr(Training, "_start_process", lambda *_: None)
    return Training(ground.settings, Runs(tmp_path), ground.model, QueueSettings())


def test_it_is_a_subclass_of_the_installed_framework() -> None:
    model = pytest.importorskip("label_studio_ml.model")
    assert issubclass(EdgeSAMBackend, model.LabelStudioMLBase)
    assert "START_TRAINING" in EdgeSAMBackend.TRAIN_EVENTS


@pytest.mark.parametrize(
    ("made", "called"),
    [
        pytest.param(
            {
                "label_config": BRUSH_CONFIG,
                "train_output": {},
                "hostname": "h",
                "access_token": "t",
            },
            {"context": CONTEXT, "login": None, "password": None},
            id="1.0.9",
        ),
        pytest.param(
            {"project_id": "1", "label_config": BRUSH_CONFIG}, {"context": CONTEXT}, id="2.x"
        ),
        pytest.param({}, {"context": CONTEXT, "label_config": BRUSH_CONFIG}, id="ours"),
    ],
)
def test_predict_takes_either_call_shape(engine: Engine, made: Any, called: Any) -> None:
    backend = EdgeSAMBackend(**made, engine=engine)
    (prediction,) = backend.predict(SENT["tasks"], **called)
    assert prediction["result"][0]["type"] == "brushlabels"
    assert prediction["model_version"] == backend.model_version


def test_predict_without_a_context_is_one_empty_result_per_task(engine: Engine) -> None:
    backend = EdgeSAMBackend("1", BRUSH_CONFIG, engine=engine)
    assert [p["result"] for p in backend.predict(SENT["tasks"] * 3)] == [[], [], []]


@pytest.mark.parametrize(
    ("args", "kwargs", "project"),
    [
        pytest.param(("ANNOTATION_CREATED", WEBHOOK), {}, None, id="2.x annotation"),
        pytest.param(("START_TRAINING", WEBHOOK), {}, 3, id="2.x training"),
        pytest.param(("START_TRAINING", {}), {}, 7, id="2.x training of the instance's project"),
        pytest.param(
            ((),), {"event": "PROJECT_UPDATED", "data": WEBHOOK, "job_id": "1", "workdir": "w"},
            None,
            id="1.0.9 webhook",
        ),
        pytest.param(
            ((),), {"event": "START_TRAINING", "data": WEBHOOK, "job_id": "1"}, 3,
            id="1.0.9 training webhook",
        ),
        pytest.param(([{"id": 1, "project": 9}], "workdir"), {}, 7, id="1.0.9 train call"),
    ],
)  # fmt: skip
def test_fit_takes_either_call_shape(
    engine: Engine, training: Training, args: Any, kwargs: Any, project: int | None
) -> None:
    backend = EdgeSAMBackend("7.1795229737", engine=engine, training=training)
    answer = backend.fit(*args, **kwargs)
    assert [run.project for run in training.runs.of()] == ([] if project is None else [project])
    assert answer == ({} if project is None else {"job": training.runs.of()[0].job})


def test_fit_knows_the_project_of_the_tasks_or_says_that_it_knows_none(
    engine: Engine, training: Training
) -> None:
    backend = EdgeSAMBackend(engine=engine, training=training)
    backend.fit(iter([{"id": 1, "project": 9}]), "workdir")
    assert [run.project for run in training.runs.of()] == [9]
    asked: list[tuple[Any, ...]] = [
        (iter([]), "workdir"),
        ("START_TRAINING", {}),
        ("START_TRAINING",),
    ]
    for nothing in asked:
        with pytest.raises(RequestError, match="Which project"):
            backend.fit(*nothing)


def test_first_requests_that_come_together_open_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    class SlowService:
        def __init__(self, settings: object) -> None:
            time.sleep(0.2)
            made.append(self)

        def start(self) -> None:
            pass

    monkeypatch.setattr("backend.service.Service", SlowService)
    plugin._make_service.cache_clear()
    try:
        with ThreadPoolExecutor(2) as pool:
            found = [pool.submit(plugin._service_of_process) for _ in range(2)]
        assert [service.result() for service in found] == made * 2
    finally:
        plugin._make_service.cache_clear()


def test_a_base_class_of_2_x_is_made_as_it_wants_to_be() -> None:
    """2.x is not on PyPI: this class has its constructor and events, no more."""
    script = """
        import sys, types

        class LabelStudioMLBase:
            TRAIN_EVENTS = ("ANNOTATION_CREATED", "START_TRAINING")

            def __init__(self, project_id=None, label_config=None):
                self.seen = project_id, label_config

        model = types.ModuleType("label_studio_ml.model")
        model.LabelStudioMLBase = LabelStudioMLBase
        sys.modules["label_studio_ml"] = types.ModuleType("label_studio_ml")
        sys.modules["label_studio_ml.model"] = model
        from backend.plugin import EdgeSAMBackend

        backend = EdgeSAMBackend("7", label_config="<View/>")
        assert isinstance(backend, LabelStudioMLBase)
        assert backend.seen == ("7", "<View/>")
    """
    run(script)


def test_without_the_framework_a_stand_in_serves() -> None:
    script = """
        import sys
        sys.modules["label_studio_ml"] = None
        from backend.plugin import EdgeSAMBackend, _StandIn
        assert issubclass(EdgeSAMBackend, _StandIn)
        assert EdgeSAMBackend("1", "<View/>").fit("PROJECT_UPDATED", {}) == {}
    """
    run(script)


def test_the_frameworks_own_application_answers_under_1_0_9(
    disc_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("label_studio_ml")
    script = f"""
        import json, sys
        from label_studio_ml.api import init_app
        from backend.plugin import EdgeSAMBackend

        sent = json.loads(sys.stdin.read())
        client = init_app(EdgeSAMBackend, model_dir={str(tmp_path)!r}).test_client()
        assert client.get("/health").json["status"] == "UP"
        setup = client.post("/setup", json={{
            "project": "1.1", "schema": sent["label_config"], "hostname": "", "access_token": "x",
        }})
        assert setup.status_code == 200, setup.text
        assert setup.json["model_version"]
        answer = client.post("/predict", json=sent)
        assert answer.status_code == 200, answer.text
        (prediction,) = answer.json["results"]
        assert prediction["result"][0]["type"] == "brushlabels"
        empty = client.post("/predict", json={{**sent, "params": {{"context": None}}}})
        assert empty.json["results"][0]["result"] == []
    """
    run(script, json.dumps(SENT), MODEL=str(disc_bundle))


def test_in_the_frameworks_own_application_a_body_is_parsed_once(
    disc_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("label_studio_ml")
    script = f"""
        import json, sys
        from label_studio_ml.api import init_app
        from backend.plugin import EdgeSAMBackend

        sent = json.loads(sys.stdin.read())
        sent["tasks"][0]["drafts"] = [{{"result": [{{"value": {{"rle": [255] * 1_500_000}}}}]}}]
        client = init_app(EdgeSAMBackend, model_dir={str(tmp_path)!r}).test_client()
        client.post("/setup", json={{"project": "1.1", "schema": sent["label_config"]}})
        decode, lengths = json.JSONDecoder.decode, []
        json.JSONDecoder.decode = lambda *args: lengths.append(len(args[1])) or decode(*args)
        assert client.post("/predict", json=sent).status_code == 200
        assert sum(length > 1e6 for length in lengths) == 1, lengths
    """
    run(script, json.dumps(SENT), MODEL=str(disc_bundle))


def run(script: str, stdin: str = "", **environ: str) -> None:
    """Run a script in a fresh interpreter: the framework's state is global."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=stdin,
        cwd=REPOSITORY,
        env={"PATH": "", "HOME": "/nonexistent", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
