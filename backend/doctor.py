"""What stands between an annotator and a mask, found by walking the way that a click takes.

Most reports about backends are settings: an address that only the browser can reach, a token of the
wrong kind, a model that is attached but not interactive, a tool that is not smart. Each step here
asks the real thing and answers in one sentence, with the cure where one is needed. It changes
nothing, in Label Studio or here, and what it prints may be pasted into a bug report: no token, no
path. The command is in __main__.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import RedisError

from backend.images import ImageLoader, ImageSettings
from backend.label_config import parse_label_config
from backend.label_studio import LabelStudioClient, LabelStudioSettings
from backend.queues import QueueSettings, connect, eviction_complaint, listening, redis_reason
from backend.task_pictures import image_uri
from edgesam_core.errors import EdgeSamError, LabelConfigError, RequestError, UpstreamError
from edgesam_core.image import read_image

PROJECTS_TO_SEARCH = 30
"""Newest projects that are asked for a backend where no project is named."""

PATIENCE_S = 60.0
"""For one question; the server itself waits less."""

_NOT_ANSWERING = ("DI", "ER")  # Label Studio's MLBackendState: disconnected, error


@dataclass(frozen=True)
class Finding:
    """One step of the way: whether it can be gone, and a sentence."""

    is_good: bool
    sentence: str


def examine(
    label_studio: LabelStudioSettings,
    images: ImageSettings,
    queues: QueueSettings,
    *,
    open_model: Callable[[], str],
    project_id: int | None = None,
) -> Iterator[Finding]:
    """Walk the way of a click and say what is found, step by step.

    A step that others build on ends the walk when it fails: without a token there is no asking for
    projects.

    Args:
        label_studio: As the server would use them.
        images: As the server would use them; the cache is left out, so that one image is really
            fetched.
        queues: As the server would use them; without Redis there is nothing to say about them.
        open_model: Opens the bundle that would be served and returns its name.
        project_id: The project to look at; None: the newest with a backend attached.
    """
    yield _try(lambda: f"The model {open_model()} opens.")
    if queues.redis_url is not None:
        url = queues.redis_url
        yield _try(lambda: _check_workers(url))

    # Asked for a project's backends, Label Studio asks each of them first.
    client = LabelStudioClient(replace(label_studio, timeout_s=PATIENCE_S))
    reachable = _try(lambda: _check_reachable(client))
    yield reachable
    if not reachable.is_good:
        return
    accepted = _try(lambda: _check_token(client))
    yield accepted
    if not accepted.is_good:
        return

    try:
        project, backends = _find_project(client, project_id)
    except EdgeSamError as exc:
        yield Finding(False, exc.sentence)
        return
    loader = ImageLoader(images, client)
    yield _try(lambda: _check_backend(project, backends))
    yield _try(lambda: _check_label_config(project))
    yield _try(lambda: _check_image(client, loader, project, images.max_pixels))


def _try(step: Callable[[], str]) -> Finding:
    try:
        return Finding(True, step())
    except EdgeSamError as exc:
        return Finding(False, exc.sentence)


def _check_workers(url: str) -> str:
    redis = connect(url, timeout_s=5)
    try:
        workers, complaint = len(listening(redis)), eviction_complaint(redis)
    except RedisError as exc:
        raise UpstreamError(
            f"The Redis of REDIS_URL does not answer ({redis_reason(exc)}). Start it, or unset "
            "REDIS_URL; until then each process encodes for itself."
        ) from exc
    if complaint:
        raise RequestError(f"{complaint} Workers that listen: {workers}.")
    sentence = f"Redis answers at REDIS_URL, with noeviction; workers that listen: {workers}."
    if not workers:
        raise UpstreamError(f"{sentence} Start one (make worker), or each click encodes by itself.")
    return sentence


def _check_reachable(client: LabelStudioClient) -> str:
    client.get_json("/health/", with_token=False)
    return "Label Studio answers at LABEL_STUDIO_URL."


def _check_token(client: LabelStudioClient) -> str:
    client.get_json("/api/current-user/whoami")
    return f"Label Studio accepts the {client.token_kind} in LABEL_STUDIO_API_KEY."


def _find_project(
    client: LabelStudioClient, project_id: int | None
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """A project as the API has it, and the backends attached to it."""
    if project_id is not None:
        return client.project(project_id), _backends(client, project_id)
    projects = client.get_json("/api/projects/", page_size=PROJECTS_TO_SEARCH)["results"]
    if not projects:
        raise UpstreamError(
            "Label Studio has no project that the token's owner can see. "
            "Create one and import an image."
        )
    for project in projects:
        if backends := _backends(client, project["id"]):
            return project, backends
    return projects[0], []


def _backends(client: LabelStudioClient, project_id: int) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = client.get_json("/api/ml/", project=project_id)
    return found


def _check_backend(project: Mapping[str, Any], backends: list[Mapping[str, Any]]) -> str:
    name = f"Project {project['id']}"
    if not backends:
        raise RequestError(
            f"{name} has no model attached. Under Settings > Model > Connect Model, enter the "
            "address of this backend and switch on interactive preannotations."
        )
    interactive = [backend for backend in backends if backend.get("is_interactive")]
    if not interactive:
        raise RequestError(
            f"The model of project {project['id']} is not interactive, so no click reaches it. "
            "Edit it under Settings > Model and switch on interactive preannotations."
        )
    used = interactive[0]
    title = used.get("title") or "without a title"
    if used.get("state") in _NOT_ANSWERING:
        raise UpstreamError(
            f"Label Studio cannot reach the model ({title}) of project {project['id']}. Check that "
            "this backend runs and that the address entered there is right as seen from Label "
            "Studio, which must be started with ML_BLOCK_LOCAL_IP=false and "
            "SSRF_PROTECTION_ENABLED=false where that address is a private one."
        )
    sentence = f"{name} has an interactive model attached ({title}), and Label Studio reaches it."
    if len(interactive) > 1:
        sentence += f" Of its {len(interactive)} interactive models the page asks only this one."
    return sentence


def _check_label_config(project: Mapping[str, Any]) -> str:
    config = parse_label_config(project.get("label_config"))
    if not config.smart_tools:
        raise LabelConfigError(
            f"The labelling config of project {project['id']} has no smart tool, so a click asks "
            'for nothing. Add smart="true" to its KeyPointLabels and RectangleLabels.'
        )
    output = config.outputs(config.image().name, ())[0]
    return (
        f"The labelling config has smart tools ({', '.join(config.smart_tools)}) and a place for "
        f"masks ({output.control.name})."
    )


def _check_image(
    client: LabelStudioClient, loader: ImageLoader, project: Mapping[str, Any], max_pixels: int
) -> str:
    tag = parse_label_config(project.get("label_config")).image()
    # Not resolved: the address as /predict receives it.
    answer = client.get_json("/api/tasks/", project=project["id"], page_size=1, resolve_uri="false")
    tasks = answer["tasks"] if isinstance(answer, dict) else answer
    if not tasks:
        raise RequestError(f"Project {project['id']} has no tasks. Import an image.")
    task = tasks[0]
    fetched = loader.fetch(image_uri(tag, task["data"], None), task_id=task["id"])
    height, width = read_image(fetched.data, max_pixels=max_pixels).shape[:2]
    return f"The image of task {task['id']} can be fetched and read ({width} x {height} pixels)."
