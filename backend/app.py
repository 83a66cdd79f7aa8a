"""The Flask application: routes, access, a log line per request, and one answer to every error."""

from __future__ import annotations

import json
import logging
import time

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from backend import auth, logs
from backend.compressed import compress
from backend.metrics import Metrics
from backend.routes import ROUTES, Route, Routes
from backend.service import Service
from backend.settings import Settings
from backend.status_page import STATUS_NAMES, STATUS_ROUTES, StatusPage
from backend.training_routes import TRAINING_ROUTES, TrainingRoutes
from edgesam_core.errors import EdgeSamError, Superseded

logger = logging.getLogger(__name__)

_QUIET_ROUTES = frozenset(
    {"health", "ready", "metrics", "status", "status_of_project", "status_picture"}
)
"""Asked again every few seconds."""
_RETRY_AFTER_S = 2

_SENTENCES = {
    400: ("bad_request", "The request is not valid JSON. Send what Label Studio sends."),
    401: (
        "unauthorized",
        "The user name or password is missing or wrong. Enter the backend's in Label Studio under "
        "Settings > Model.",
    ),
    404: ("not_found", "There is nothing at this address. Check the URL of the backend."),
    405: ("method_not_allowed", "This address answers another HTTP method."),
    413: (
        "body_too_large",
        "The request is larger than the backend takes. Raise EDGESAM_MAX_BODY_BYTES, or delete old "
        "drafts and annotations of the task.",
    ),
    415: ("unsupported_media_type", "The request is not JSON. Send Content-Type application/json."),
}


def create_app(settings: Settings) -> Flask:
    """The application that gunicorn serves.

    Nothing is loaded yet, since a server may fork after this: `gunicorn.conf.py` has each process
    load its model as soon as it is one, elsewhere the first question about the model does.

    Args:
        settings: From `Settings.from_env`, or made by a test.
    """
    logs.configure(settings.logs)
    service = Service(settings)
    app = Flask("backend", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.server.max_body_bytes
    app.extensions["edgesam"] = service
    _register(app, service)
    return app


def _register(app: Flask, service: Service) -> None:
    """Routes, access, the request's log line, and the one error handler."""
    settings = service.settings
    routes = Routes(
        service.models,
        service.engine,
        service.prefetch,
        service.second_look,
        service.metrics,
        service.training,
        service.effort,
        settings,
    )
    training_routes = TrainingRoutes(
        service.training, service.versions, service.models.own, settings
    )
    views: list[tuple[Route, object]] = [(route, routes) for route in ROUTES]
    views += [(route, training_routes) for route in TRAINING_ROUTES]
    status_page = StatusPage(
        service.training,
        service.versions,
        training_routes,
        service.effort,
        service.models,
        settings,
    )
    views += [(route, status_page) for route in STATUS_ROUTES]
    for route, holder in views:
        app.add_url_rule(
            settings.auth.url_prefix + route.path,
            endpoint=route.name,
            view_func=getattr(holder, route.name),
            methods=[route.method],
            provide_automatic_options=False,
        )

    @app.before_request
    def begin() -> None:
        request.environ["edgesam.started"] = time.perf_counter()
        logs.begin(request.headers.get("X-Request-ID"))
        if request.endpoint is not None:
            auth.check_request(request, request.endpoint, settings.auth)

    @app.after_request
    def finish(response: Response) -> Response:
        response = compress(request, response)
        record = logs.current()
        seconds = time.perf_counter() - request.environ["edgesam.started"]
        route = request.endpoint or "none"
        response.headers["X-Request-ID"] = record.request_id
        service.metrics.requests.labels(route, str(response.status_code)).observe(seconds)
        level = logging.DEBUG if route in _QUIET_ROUTES else logging.INFO
        logger.log(
            level, "%s %d in %.0f ms %s",
            route, response.status_code, seconds * 1000, record.line(),
        )  # fmt: skip
        return response

    @app.errorhandler(Exception)
    def answer_error(exc: Exception) -> Response:
        return _answer_error(exc, service.metrics, status_page)


def _answer_error(exc: Exception, metrics: Metrics, status_page: StatusPage) -> Response:
    """Any exception as a sentence, a code and the request's id; details go to the log."""
    headers: dict[str, str] = {}
    if isinstance(exc, HTTPException):
        status = exc.code or 500
        code, sentence = _SENTENCES.get(status, ("http_error", f"{exc.name}."))
        if exc.code == 401:
            headers["WWW-Authenticate"] = 'Basic realm="EdgeSAM"'
        if exc.code == 405 and getattr(exc, "valid_methods", None):
            headers["Allow"] = ", ".join(exc.valid_methods)  # type: ignore[attr-defined]
        logger.warning("answered %d: %s", status, sentence)
    elif isinstance(exc, EdgeSamError):
        status, code, sentence = exc.status, exc.code, exc.sentence
        detail = f" ({exc.detail})" if exc.detail else ""
        # Nobody waits for these: the page dropped the click, a probe asks again.
        is_expected = isinstance(exc, Superseded) or (status == 503 and request.endpoint == "ready")
        level = logging.DEBUG if is_expected else logging.ERROR
        logger.log(level, "answered %d: %s%s", status, sentence, detail)
    else:
        unknown = EdgeSamError()
        status, code, sentence = unknown.status, unknown.code, unknown.sentence
        logger.error("answered %d: %s", status, sentence, exc_info=exc)
    if status == 503:
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    metrics.errors.labels(code).inc()
    if request.endpoint in STATUS_NAMES:
        return status_page.refused(status, sentence, headers)
    body = {"error": sentence, "code": code, "request_id": logs.current().request_id}
    return Response(json.dumps(body), status, headers, mimetype="application/json")
