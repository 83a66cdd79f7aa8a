"""Training and versions over HTTP: start a run, watch it, cancel it, promote, roll back.

Label Studio knows of these `/train`, `/versions`, `/job_status` and `/is_training`; its connector
(label_studio 1.23.2, ``ml/api_connector.py``) wants ``job`` in the answer to START_TRAINING (the
webhook, routes.py) and ``job_status`` in RQ's words. The others are for admins and for the status
page. What changes who is served what is guarded (auth.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flask import request

from backend import auth
from backend.model import ServedModel
from backend.routes import Route, project_id_of, read_json
from backend.run_progress import gate_of, progress_of, snapshot_of
from backend.run_state import Budget, RunState
from backend.settings import Settings
from backend.training import Training
from backend.versions import Versions
from edgesam_core.errors import NoSuchRun, NoSuchVersion, RequestError

TRAINING_ROUTES = (
    Route("train", "/train"),
    Route("runs", "/train", "GET"),
    Route("run", "/train/<job>", "GET"),
    Route("cancel", "/train/<job>", "DELETE"),
    Route("versions", "/versions", "GET"),
    Route("versions", "/versions", "POST"),
    Route("promote", "/versions/<version>/promote"),
    Route("rollback", "/rollback"),
    Route("job_status", "/job_status", "GET"),
    Route("job_status", "/job_status", "POST"),
    Route("is_training", "/is_training", "GET"),
)

_OPTIONS = frozenset({"minutes", "steps", "resume"})
_JOB_STATUS = {"promoted": "finished", "kept": "finished", "failed": "failed"}

Answer = dict[str, Any]


class TrainingRoutes:
    """The views; each answers at once, whatever a run does."""

    def __init__(
        self, training: Training, versions: Versions, model: ServedModel, settings: Settings
    ) -> None:
        """Take the parts of a running backend (app.py)."""
        self._training = training
        self._runs = training.runs
        self._versions = versions
        self._model = model
        self._settings = settings

    def train(self) -> tuple[Answer, int]:
        """Start a run, or join the one that is not done."""
        body = read_json()
        options = body.get("options") or {}
        if not isinstance(options, dict) or not options.keys() <= _OPTIONS:
            raise RequestError(f"options should be an object of {', '.join(sorted(_OPTIONS))}.")
        budget = Budget(options.get("minutes"), options.get("steps"))
        run, is_new = self._training.request(
            _project_of(body), budget, "/train", resume=options.get("resume") is True
        )
        return {**self._described(run), "joined": not is_new}, 201 if is_new else 200

    def runs(self) -> Answer:
        """The runs of a project, or of all, newest first."""
        project_id = project_id_of(request.args.get("project"))
        return {"runs": [self._described(run) for run in self._runs.of(project_id)]}

    def run(self, job: str) -> Answer:
        """How far a run is."""
        run, folder = self._runs.find(job), self._runs.folder(job)
        return {
            **self._described(run),
            **asdict(progress_of(folder)),
            "snapshot": snapshot_of(folder),
            "gate": gate_of(folder),
        }

    def cancel(self, job: str) -> Answer:
        """End a run."""
        auth.check_guarded(request, self._settings.auth)
        return self._described(self._runs.cancel(job))

    def versions(self) -> Answer:
        """What can be served: of a project, with its history; of all projects where none is named.

        Label Studio names none.
        """
        named = read_json() if request.method == "POST" else request.args
        project_id = project_id_of(named.get("project"))
        answer: Answer = {"versions": self.servable(project_id)}
        if project_id is not None:
            answer["current"] = self._versions.current(project_id) or self._model.version
            answer["history"] = [asdict(change) for change in self._versions.history(project_id)]
        return answer

    def promote(self, version: str) -> Answer:
        """Serve a project another version, whatever the gate said of it."""
        auth.check_guarded(request, self._settings.auth)
        project_id = _project_of(read_json())
        self.serve(project_id, version)
        return {"project": project_id, "version": version}

    def rollback(self) -> Answer:
        """Serve a project what it was served before."""
        auth.check_guarded(request, self._settings.auth)
        project_id = _project_of(read_json())
        version = self._versions.rollback(project_id, "by hand")
        return {"project": project_id, "version": version or self._model.version}

    def job_status(self) -> Answer:
        """What became of a training job, in the words of Label Studio's connector.

        Raises:
            NoSuchRun: With 410, which Label Studio takes for "removed".
        """
        named = read_json() if request.method == "POST" else request.args
        try:
            run = self._runs.find(str(named.get("job")))
        except NoSuchRun as exc:
            exc.status = 410
            raise
        status = "queued" if run.stage == "queued" else "started"
        answer: Answer = {
            "job_status": _JOB_STATUS.get(run.outcome, "canceled") if run.outcome else status,
            "error": run.reason if run.outcome == "failed" else None,
            "created_at": run.asked_at,
            "enqueued_at": run.asked_at,
            "started_at": run.started_at,
            "ended_at": run.ended_at,
        }
        if run.outcome in ("promoted", "kept"):
            answer["result"] = {"model_version": run.version, "job": run.job, "reason": run.reason}
        return answer

    def is_training(self) -> Answer:
        """Whether a run is going on, of a project or of any."""
        project_id = project_id_of(request.args.get("project"))
        current = None if project_id is None else self._versions.current(project_id)
        return {
            "is_training": bool(self._runs.unfinished(project_id)),
            "model_version": current or self._model.version,
        }

    @property
    def own_version(self) -> str:
        """Of the model that the server was started with."""
        return self._model.version

    def servable(self, project_id: int | None) -> list[str]:
        """Versions that a project can be served, or any where none is named; the newest last."""
        return list(dict.fromkeys([self._model.version, *self._versions.of(project_id)]))

    def serve(self, project_id: int, version: str) -> None:
        """Serve a project another version, because somebody wants it.

        Raises:
            NoSuchVersion: There is none.
        """
        if version not in self.servable(None):
            raise NoSuchVersion
        if version == self._model.version and version not in self._versions.of(None):
            folder = self._settings.model.folder()
            self._versions.add(project_id, folder, "the server's own model")
        self._versions.promote(project_id, version, "by hand")

    def _described(self, run: RunState) -> Answer:
        """A run as an answer: what is kept of it, and what it is doing now."""
        return {**asdict(run), "state": self._runs.doing(run)}


def _project_of(body: Mapping[str, Any]) -> int:
    """The project that a body names.

    Raises:
        RequestError: It names none.
    """
    project_id = project_id_of(body.get("project"))
    if project_id is None:
        raise RequestError('Which project? Send its id in the body, such as {"project": 3}.')
    return project_id
