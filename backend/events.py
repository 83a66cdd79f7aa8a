"""``context.event``: what newer pages ask beside masks (what can you do, please be ready).

The open-source page of Label Studio 1.23.2 never sends one. The form is that of HumanSignal's
``segment_anything_video_interactive`` example: each answer is the single item of a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend import logs
from backend.engine import Engine, Prediction
from backend.label_config import parse_label_config
from backend.prefetch import Prefetch
from backend.results import fresh_id
from edgesam_core.errors import RequestError

_CAPABILITIES = {
    "prompts": ["point", "box"],
    "targets": [
        {"tag": "BrushLabels", "output": "mask"},
        {"tag": "BitmaskLabels", "output": "mask"},
        {"tag": "PolygonLabels", "output": "polygon"},
        {"tag": "RectangleLabels", "output": "bbox"},
    ],
}


class Events:
    """Answers events."""

    def __init__(self, engine: Engine, prefetch: Prefetch) -> None:
        """Take what they are about.

        Args:
            engine: Whose model it is.
            prefetch: What encodes ahead.
        """
        self._engine = engine
        self._prefetch = prefetch

    def answer(
        self,
        context: Mapping[str, Any] | None,
        project_id: int | None,
        tasks: Sequence[Mapping[str, Any]],
        label_config_xml: object,
    ) -> list[Prediction] | None:
        """One prediction per task for an event; None where the request asks for masks.

        Raises:
            RequestError: An event that nobody here knows.
            LabelConfigError: A prewarm with a config that has no image.
        """
        event = (context or {}).get("event")
        if event in (None, "predict"):
            return None
        logs.current().note = f"event {event!r:.40}"
        if event == "capabilities":
            manifest = self._engine.models.of(project_id).manifest
            value = {
                **_CAPABILITIES,
                "model_info": {"name": manifest.name, "version": manifest.version},
            }
            return [self._prediction(event, value, project_id) for _ in tasks]
        if event == "prewarm":
            parse_label_config(label_config_xml)
            self._prefetch.opened(project_id, tasks, label_config_xml)
            ack = {"status": "ok", "cached": [], "pending": [0]}
            return [self._prediction("prewarm_ack", ack, project_id) for _ in tasks]
        raise RequestError(f"The event {event!r:.40} is not known. Send predict or prewarm.")

    def _prediction(
        self, kind: str, value: Mapping[str, Any], project_id: int | None
    ) -> Prediction:
        item = {"id": fresh_id(), "type": kind, "origin": "manual", "value": dict(value)}
        return {
            "result": [item],
            "score": 0.0,
            "model_version": self._engine.models.of(project_id).version,
        }
