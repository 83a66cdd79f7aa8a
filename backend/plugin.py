"""The `LabelStudioMLBase` subclass: Label Studio's framework on one side, engine.py on the other.

It holds no model, no cache and no labelling config of its own making, so one instance may answer
for everybody. Our application (app.py) calls it, and so may ``init_app(EdgeSAMBackend)`` of
label_studio_ml, whose two lines differ in every signature:

- 1.0.9 (PyPI's newest): ``__init__(label_config, train_output, **kwargs)``, kept by the process,
  ``predict(tasks, **kwargs)``, ``fit(tasks, workdir, **kwargs)`` or, from a webhook,
  ``fit((), event=..., data=..., job_id=..., workdir=...)``;
- 2.x (git only): ``__init__(project_id, label_config)``, one instance per request,
  ``predict(tasks, context, **kwargs)``, ``fit(event, data, **kwargs)``.

Nothing else of the framework is used: its helpers read any file of this machine, and its error
handler sends tracebacks to the caller. Without the package a class of the same shape stands in.
"""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from edgesam_core.errors import RequestError

if TYPE_CHECKING:
    from backend.engine import Engine, Prediction
    from backend.service import Service
    from backend.training import Training


@contextmanager
def _torch_hidden() -> Iterator[None]:
    """Let imports inside the block find no torch, unless it is loaded already.

    label_studio_ml.model imports torch wherever it finds it, only to set a start method: hundreds
    of megabytes that a serving process has no use for.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


class _StandIn:
    """What is left of the framework's base class where the package is not installed."""

    TRAIN_EVENTS: tuple[str, ...] = ()

    def __init__(self, **kwargs: Any) -> None:
        """Keep nothing."""


def _base_class() -> Any:
    with _torch_hidden():
        try:
            from label_studio_ml.model import LabelStudioMLBase
        except ImportError:
            return _StandIn
    return LabelStudioMLBase


_Base: Any = _base_class()
_BASE_TAKES_PROJECT = "project_id" in inspect.signature(_Base.__init__).parameters


class EdgeSAMBackend(_Base):  # type: ignore[misc]
    """EdgeSAM as a Label Studio ML backend."""

    TRAIN_EVENTS = (*_Base.TRAIN_EVENTS, "START_TRAINING")

    def __init__(
        self,
        project_id: str | None = None,
        label_config: str | None = None,
        train_output: Mapping[str, Any] | None = None,
        *,
        engine: Engine | None = None,
        training: Training | None = None,
        **kwargs: Any,
    ) -> None:
        """Take what either line of the framework passes.

        Args:
            project_id: Label Studio's project (2.x).
            label_config: The labelling config that a call of `predict` means if it brings none.
            train_output: What `fit` returned (1.0.9).
            engine: What answers; None means the one that the environment asks for, made at the
                first call and shared by the process.
            training: What starts training runs; as `engine`.
            kwargs: ``hostname``, ``access_token``, ``model_version`` (1.0.9); not believed.
        """
        if _BASE_TAKES_PROJECT:
            super().__init__(project_id=project_id, label_config=label_config)
        else:
            super().__init__(train_output=train_output)  # its XML reader is not to see the config
        self._engine = engine
        self._training = training
        self._project_id = project_id
        self._own_label_config = label_config

    @property
    def model_version(self) -> str:
        """The bundle's version."""
        return self._answering().models.own.version

    def predict(
        self,
        tasks: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Prediction]:
        """One prediction per task.

        Args:
            tasks: Label Studio's tasks.
            context: What was drawn; None where nobody clicked.
            kwargs: ``label_config`` and ``project_id`` of this request, where the caller knows
                them; ``login`` and ``password`` (1.0.9) are ignored.
        """
        return self._answering().predict(
            kwargs.get("project_id", self._project_id),
            kwargs.get("label_config") or self._own_label_config,
            list(tasks),
            context,
        )

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Hear of an event; asked to train, start a run or join the one that is not done.

        Args:
            args: ``(event, data)`` in 2.x, ``(tasks, workdir)`` in 1.0.9.
            kwargs: ``event`` and ``data`` where 1.0.9 passes a webhook on.

        Returns:
            ``job``, where the event is START_TRAINING or there is none (1.0.9's ``/train``).

        Raises:
            RequestError: No project is named.
            TrainingUnavailable: Nothing can be trained here.
        """
        first = args[0] if args else ()
        event = kwargs.get("event", first if isinstance(first, str) else None)
        if event not in (None, "START_TRAINING"):
            return {}
        is_webhook = isinstance(first, str)
        data = kwargs.get("data", args[1] if is_webhook and len(args) > 1 else None)
        project_id = _named_project(data, self._project_id, () if is_webhook else first)
        training = self._training or _service_of_process().training
        run, _ = training.request(project_id, why="Start Training")
        return {"job": run.job}

    def _answering(self) -> Engine:
        return self._engine if self._engine is not None else _service_of_process().engine


def _named_project(data: object, own: object, tasks: Iterable[Any]) -> int:
    """The project that is to be trained: a webhook's, the instance's (2.x), or the tasks' (1.0.9).

    Raises:
        RequestError: None of them names one.
    """
    project = data.get("project") if isinstance(data, dict) else None
    named = [project.get("id") if isinstance(project, dict) else project, own]
    named += [task.get("project") for task in islice(tasks, 1) if isinstance(task, dict)]
    for given in named:
        found = re.match(r"\d{1,18}(?=\.|$)", str(given), re.ASCII)
        if found:
            return int(found[0])
    raise RequestError("Which project should be trained? The request names none.")


_making = threading.Lock()


def _service_of_process() -> Service:
    """The parts for instances that a framework made, the same for all of its threads."""
    with _making:
        return _make_service()


@cache
def _make_service() -> Service:
    from backend.service import Service
    from backend.settings import Settings

    service = Service(Settings.from_env())
    service.start()
    return service
