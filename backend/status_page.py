"""The status page: what each project is served, how its runs go, what the gate saw, and buttons.

HTML made here, without scripts, so that nothing has to be built and nothing is fetched from
elsewhere; while a run goes on the page loads itself anew. Its forms do what the routes that take
JSON do (training_routes.py), and are guarded as those are. Every link is relative, so that neither
a secret path nor a proxy's prefix ever stands in a page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Response, render_template, request
from werkzeug.exceptions import NotFound

from backend import auth, logs
from backend.effort import Effort
from backend.models import Models
from backend.routes import Route, project_id_of
from backend.run_state import Budget, RunState
from backend.same_origin import check_same_origin
from backend.settings import Settings
from backend.status_facts import (
    CURVES,
    Served,
    pictures_of,
    rollback_target,
    run_facts,
    servable_versions,
    served_now,
)
from backend.status_text import decimal, measure, minutes, moment, percent, words
from backend.training import Training
from backend.training_routes import TrainingRoutes
from backend.versions import Versions
from edgesam_core.errors import Guarded, NoSuchRun, RequestError

REFRESH_S = 5
"""While a run goes on."""

STATUS_ROUTES = (
    Route("status", "/training", "GET"),
    Route("status_of_project", "/training/<int:project_id>", "GET"),
    Route("status_picture", "/training/<int:project_id>/<job>/<path:name>", "GET"),
    Route("status_start", "/training/<int:project_id>/start"),
    Route("status_cancel", "/training/<int:project_id>/cancel"),
    Route("status_promote", "/training/<int:project_id>/promote"),
    Route("status_rollback", "/training/<int:project_id>/rollback"),
)

STATUS_NAMES = frozenset(route.name for route in STATUS_ROUTES)

_TEMPLATES = Path(__file__).with_name("templates")
_WRITTEN = {f.__name__: f for f in (decimal, measure, minutes, moment, percent, words)}


class StatusPage:
    """The views; one per process."""

    def __init__(
        self,
        training: Training,
        versions: Versions,
        api: TrainingRoutes,
        effort: Effort,
        models: Models,
        settings: Settings,
    ) -> None:
        """Take the parts of a running backend (app.py).

        Args:
            training: Starts runs.
            versions: Who is served what.
            api: Does what the buttons say.
            effort: What annotators' work comes to.
            models: Who answers in this process.
            settings: Of the server.
        """
        self._training = training
        self._runs = training.runs
        self._versions = versions
        self._api = api
        self._effort = effort
        self._models = models
        self._auth = settings.auth
        self._style = (_TEMPLATES / "status.css").read_text(encoding="utf-8")
        style_hash = base64.b64encode(hashlib.sha256(self._style.encode()).digest()).decode()
        self._headers = {
            "Content-Security-Policy": (
                f"default-src 'none'; style-src 'sha256-{style_hash}'; img-src 'self' data:; "
                "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
            ),
            "X-Content-Type-Options": "nosniff",
            # Without any, browsers would hide the forms' origin, too.
            "Referrer-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    # --- pages ---

    def status(self) -> Response:
        """The projects that have runs or versions; with ``?project=``, the way to any."""
        asked = project_id_of(request.args.get("project"))
        if asked is not None:
            return self._go_to(asked)
        runs = self._runs.of()
        newest = {run.project: run for run in reversed(runs)}
        projects = [
            (project_id, self._served(project_id), newest.get(project_id))
            for project_id in sorted(
                {*newest, *self._versions.projects(), *self._effort.rows.projects()}
            )
        ]
        return self._page(
            "overview.html",
            projects=projects,
            are_kept=self._runs.are_kept,
            refresh_s=None if all(run.is_done for run in runs) else REFRESH_S,
        )

    def status_of_project(self, project_id: int) -> Response:
        """One project: what it is served, its present or newest run or the one asked for."""
        own, current = self._api.own_version, self._versions.current(project_id)
        history, runs = self._versions.history(project_id), self._runs.of(project_id)
        stand_in = self._models.stand_in(project_id)
        answering = stand_in.version if stand_in else current
        job = request.args.get("run")
        shown = self._run_of(project_id, job) if job else next(iter(runs), None)
        facts = None
        if shown is not None:
            folder = self._runs.folder(shown.job)
            facts = run_facts(shown, folder, self._runs.doing(shown))
        return self._page(
            "project.html",
            project_id=project_id,
            served=served_now(current, own, history),
            stand_in=stand_in,
            back_to=rollback_target(current, own, history),
            versions=servable_versions(self._api.servable(project_id), answering, own, history),
            own=own,
            effort=self._effort.weeks(project_id),
            history=list(reversed(history)),
            runs=runs,
            shown=facts,
            is_going_on=any(not run.is_done for run in runs),
            may_resume=bool(runs) and runs[0].outcome in ("failed", "cancelled"),
            refusal=self._refusal(),
            refresh_s=REFRESH_S if shown is not None and not shown.is_done else None,
        )

    def status_picture(self, project_id: int, job: str, name: str) -> Response:
        """A picture of a run, by a name that the run has."""
        run = self._run_of(project_id, job)
        folder = self._runs.folder(run.job)
        if name != CURVES:  # it shows images of the project
            auth.check_guarded(request, self._auth)
        if name not in pictures_of(folder):
            raise NotFound
        try:
            picture = (folder / name).read_bytes()
        except OSError as exc:
            raise NotFound from exc
        response = Response(picture, mimetype="image/png")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "private, no-cache"
        response.add_etag()
        response.make_conditional(request)
        return response

    # --- forms ---

    def status_start(self, project_id: int) -> Response:
        """Start a run, or go on with the newest."""
        check_same_origin(request)
        budget = Budget(minutes=_minutes_of(request.form.get("minutes", "")))
        self._training.request(
            project_id, budget, "the status page", resume="resume" in request.form
        )
        return self._go_to(project_id)

    def status_cancel(self, project_id: int) -> Response:
        """End a run."""
        self._check_form()
        self._runs.cancel(self._run_of(project_id, request.form.get("job", "")).job)
        return self._go_to(project_id)

    def status_promote(self, project_id: int) -> Response:
        """Serve the project another version."""
        self._check_form()
        self._api.serve(project_id, request.form.get("version", ""))
        return self._go_to(project_id)

    def status_rollback(self, project_id: int) -> Response:
        """Serve the project what it was served before."""
        self._check_form()
        self._versions.rollback(project_id, "by hand")
        return self._go_to(project_id)

    # --- what they share ---

    def refused(self, status: int, sentence: str, headers: Mapping[str, str]) -> Response:
        """An error as a page, for app.py."""
        project_id = (request.view_args or {}).get("project_id")
        page = self._page(
            "error.html",
            status=status,
            sentence=sentence,
            project_id=project_id,
            request_id=logs.current().request_id,
        )
        page.status_code = status
        page.headers.update(headers)
        return page

    def _check_form(self) -> None:
        check_same_origin(request)
        auth.check_guarded(request, self._auth)

    def _refusal(self) -> str | None:
        """Why this caller is not offered what is guarded."""
        try:
            auth.check_guarded(request, self._auth)
        except Guarded as exc:
            return exc.sentence
        return None

    def _run_of(self, project_id: int, job: str) -> RunState:
        """A run of this project and of no other.

        Raises:
            NoSuchRun: There is none.
        """
        run = self._runs.find(job)
        if run.project != project_id:
            raise NoSuchRun
        return run

    def _served(self, project_id: int) -> Served:
        history = self._versions.history(project_id)
        return served_now(self._versions.current(project_id), self._api.own_version, history)

    def _root(self) -> str:
        """The way up from this page's folder to the server's first path, ``../`` for example."""
        return "../" * (request.path.count("/") - 1 - self._auth.url_prefix.count("/"))

    def _go_to(self, project_id: int) -> Response:
        response = Response(status=303, headers={"Cache-Control": "no-store"})
        response.headers["Location"] = f"{self._root()}training/{project_id}"
        return response

    def _page(self, template: str, **facts: Any) -> Response:
        shared = {"refresh_s": None, "root": self._root(), "style": self._style, **_WRITTEN}
        page = render_template(template, **{**shared, **facts})
        return Response(page, headers=self._headers, mimetype="text/html")


def _minutes_of(text: str) -> float | None:
    """What was typed into the field.

    Raises:
        RequestError: It is no number.
    """
    try:
        return float(text) if text.strip() else None
    except ValueError as exc:
        raise RequestError("Minutes should be a number above 0, or nothing.") from exc
