"""Label Studio's calls, one method each: HTTP in, checked, HTTP out.

First step of a click's path. The calls and what a good answer to each is stand in Label Studio's
connector (label_studio 1.23.2, ``ml/api_connector.py``); errors are raised and become answers in
app.py. Whatever `/setup` claims about Label Studio's address and token is not believed: anyone may
call it, and a process that missed the call would know nothing of it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flask import Response, request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from backend import auth
from backend.effort import Effort
from backend.engine import Engine
from backend.events import Events
from backend.label_config import parse_label_config
from backend.lean_json import loads_without_rle
from backend.metrics import Metrics
from backend.models import Models
from backend.plugin import EdgeSAMBackend
from backend.prefetch import Prefetch
from backend.second_look import SecondLook
from backend.settings import Settings
from backend.training import Training
from edgesam_core.errors import BundleError, RequestError

logger = logging.getLogger(__name__)

_MOST_HOSTNAMES = 100


@dataclass(frozen=True)
class Route:
    """A path and method, answered by the method of `Routes` with that name."""

    name: str
    path: str
    method: str = "POST"


ROUTES = (
    Route("about", "/", "GET"),
    Route("health", "/health", "GET"),
    Route("ready", "/ready", "GET"),
    Route("metrics", "/metrics", "GET"),
    Route("setup", "/setup"),
    Route("predict", "/predict"),
    Route("webhook", "/webhook"),
    Route("validate", "/validate"),
    Route("delete", "/delete"),
    Route("duplicate_model", "/duplicate_model"),
)


@dataclass(frozen=True)
class PredictRequest:
    """The body of ``/predict``, checked."""

    project_id: int | None
    label_config: object
    tasks: list[dict[str, Any]]
    context: dict[str, Any] | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> PredictRequest:
        """Check a body.

        Raises:
            RequestError: A part has another form than Label Studio's.
        """
        tasks = body.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise RequestError("The request has no list of tasks. Send what Label Studio sends.")
        params = body.get("params") or {}
        context = params.get("context") if isinstance(params, dict) else None
        if not isinstance(params, dict) or not isinstance(context, dict | None):
            raise RequestError("params and its context should be objects, as Label Studio's are.")
        return cls(project_id_of(body.get("project")), body.get("label_config"), tasks, context)


def project_id_of(project: object) -> int | None:
    """The id in Label Studio's ``id.timestamp``, or the id itself; None where none is given.

    Raises:
        RequestError: It is something else.
    """
    if project is None or project == "":
        return None
    found = re.fullmatch(r"(\d{1,18})(\.\d+)?", str(project), re.ASCII)
    if not found or isinstance(project, bool):
        raise RequestError("The project should be its id, such as 3 or 3.1795229737.")
    return int(found[1])


class Routes:
    """The views; holds what they share."""

    def __init__(
        self,
        models: Models,
        engine: Engine,
        prefetch: Prefetch,
        second_look: SecondLook,
        metrics: Metrics,
        training: Training,
        effort: Effort,
        settings: Settings,
    ) -> None:
        """Take the parts of a running backend (app.py)."""
        self._models = models
        self._metrics = metrics
        self._settings = settings
        self._training = training
        self._effort = effort
        self._backend = EdgeSAMBackend(engine=engine, training=training)
        self._prefetch = prefetch
        self._second_look = second_look
        self._events = Events(engine, prefetch)
        self._hostnames: set[str] = set()

    def about(self) -> Response:
        """What this is, for a person with a browser."""
        manifest = self._models.own.manifest
        return _json(
            {
                "status": "UP",
                "model_class": EdgeSAMBackend.__name__,
                "model": manifest.name,
                "model_version": manifest.version,
                "licence": manifest.licence,
                "status_page": "training",
            }
        )

    def health(self) -> Response:
        """Alive; says nothing about the model, see `ready`."""
        return _json({"status": "UP", "model_class": EdgeSAMBackend.__name__})

    def ready(self) -> Response:
        """Whether the model is loaded and has answered a click of its own; else 503."""
        segmenter = self._models.own.segmenter(wait_s=0)
        return _json({"status": "READY", "model_version": segmenter.version})

    def metrics(self) -> Response:
        """Prometheus' page; without a model it still counts the errors that come of that."""
        with suppress(BundleError):
            manifest = self._models.own.manifest
            self._metrics.model_info.labels(manifest.name, manifest.version).set(1)
        return Response(self._metrics.text(), mimetype="text/plain; version=0.0.4")

    def setup(self) -> Response:
        """Label Studio introduces a project; it only wants the version."""
        body = read_json()
        self._compare_hostname(body.get("hostname"))
        project_id = project_id_of(body.get("project"))
        return _json({"model_version": self._models.of(project_id).version})

    def predict(self) -> Response:
        """Masks for what was drawn; one result per task, always."""
        asked = PredictRequest.from_json(read_json(loads_without_rle))
        project_id, tasks, label_config = asked.project_id, asked.tasks, asked.label_config
        results = self._events.answer(asked.context, project_id, tasks, label_config)
        if results is None:
            results = self._backend.predict(
                tasks, context=asked.context, project_id=project_id, label_config=label_config
            )
            if asked.context is None:
                self._prefetch.opened(project_id, tasks, label_config)
            elif tasks:
                self._prefetch.worked_on(project_id, tasks[0].get("id"), label_config)
        # The one that answered, whatever is promoted meanwhile.
        version = results[0]["model_version"] if results else self._models.of(project_id).version
        answer = _json({"results": results, "model_version": version})
        answer.call_on_close(self._second_look.begin)  # once it is sent
        return answer

    def webhook(self) -> Response:
        """Something happened in Label Studio: a reason to train, or a sign of what comes next."""
        body = read_json()
        action = body.get("action")
        if action == "START_TRAINING":
            auth.check_credentials(request, self._settings.auth)
        started = self._backend.fit(str(action), body)
        if started:
            return _json({"status": "ok", "action": action, **started})
        self._look_ahead(action, body)
        self._effort.webhook(action, body)
        return _json({"status": "ignored", "action": action if isinstance(action, str) else None})

    def _look_ahead(self, action: object, body: Mapping[str, Any]) -> None:
        """Encode what a webhook says will be opened; one of another form says nothing."""
        project, annotation = body.get("project"), body.get("annotation")
        if not isinstance(project, dict) or type(project.get("id")) is not int:
            return
        if action == "TASKS_CREATED":
            self._prefetch.imported(project["id"], project.get("label_config"))
        elif action == "ANNOTATION_CREATED" and isinstance(annotation, dict):
            task_id, label_config = annotation.get("task"), project.get("label_config")
            self._prefetch.worked_on(project["id"], task_id, label_config)
            self._training.accepted(project["id"], annotation)

    def validate(self) -> Response:
        """Whether a labelling config can be served; 422 with a sentence where it cannot."""
        body = read_json()
        config = parse_label_config(body.get("config", body.get("label_config")))
        config.outputs(config.image().name, ())
        return _json({"valid": True})

    def delete(self) -> Response:
        """A project let go of the backend; nothing is kept for it."""
        return _json({"status": "ok"})

    def duplicate_model(self) -> Response:
        """A project was copied; the copy begins with the server's own model."""
        return _json({"model_version": self._models.own.version})

    def _compare_hostname(self, hostname: object) -> None:
        """One log line where Label Studio calls itself by another address than ours for it."""
        if not isinstance(hostname, str) or not hostname.strip():
            return
        shown = re.sub(r"//[^/@]*@", "//", hostname.strip())[:200]
        if shown.rstrip("/").lower() == self._settings.label_studio.url.lower():
            return
        if shown not in self._hostnames and len(self._hostnames) < _MOST_HOSTNAMES:
            self._hostnames.add(shown)
            logger.warning(
                "Label Studio calls itself %r, LABEL_STUDIO_URL is %s: images are fetched from the "
                "latter. If that fails, set LABEL_STUDIO_URL.",
                shown,
                self._settings.label_studio.url,
            )


def read_json(loads: Callable[[bytes], Any] = json.loads) -> dict[str, Any]:
    """The body of the request that is being answered.

    Args:
        loads: What parses it.

    Raises:
        UnsupportedMediaType: It is not declared as JSON.
        BadRequest: It is not JSON.
        RequestError: It is JSON, but no object.
    """
    if not request.is_json:
        raise UnsupportedMediaType
    try:
        body = loads(request.get_data(cache=False))
    except (ValueError, RecursionError) as exc:
        raise BadRequest from exc
    if not isinstance(body, dict):
        raise RequestError("The request is JSON, but not an object. Send what Label Studio sends.")
    return body


def _json(body: Mapping[str, Any]) -> Response:
    return Response(json.dumps(body, separators=(",", ":")), mimetype="application/json")
