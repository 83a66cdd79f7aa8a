"""``context.event``: what newer pages ask beside masks (what can you do, please be ready).

The open-source page of Label Studio 1.23.2 never sends one. The form is that of HumanSignal's
``segment_anything_video_interactive`` example: each answer is the single item of a result.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any

from backend import logs
from backend.engine import Engine, Prediction
from backend.label_config import parse_label_config
from backend.results import fresh_id
from edgesam_core.errors import EdgeSamError, RequestError

logger = logging.getLogger(__name__)

_MOST_PENDING = 32

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
    """Answers events; encodes ahead in one thread of its own."""

    def __init__(self, engine: Engine) -> None:
        """Start no thread before the first prewarm.

        Args:
            engine: What encodes.
        """
        self._engine = engine
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prewarm")
        self._room = BoundedSemaphore(_MOST_PENDING)

    def answer(
        self,
        context: Mapping[str, Any] | None,
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
            manifest = self._engine.model.manifest
            value = {
                **_CAPABILITIES,
                "model_info": {"name": manifest.name, "version": manifest.version},
            }
            return [self._prediction(event, value) for _ in tasks]
        if event == "prewarm":
            parse_label_config(label_config_xml)
            return [self._prewarm(task, label_config_xml) for task in tasks]
        raise RequestError(f"The event {event!r:.40} is not known. Send predict or prewarm.")

    def _prewarm(self, task: Mapping[str, Any], label_config_xml: object) -> Prediction:
        if not self._room.acquire(blocking=False):
            return self._prediction("prewarm_ack", {"status": "busy", "cached": [], "pending": []})
        self._pool.submit(self._encode, task, label_config_xml)
        return self._prediction("prewarm_ack", {"status": "ok", "cached": [], "pending": [0]})

    def _encode(self, task: Mapping[str, Any], label_config_xml: object) -> None:
        try:
            self._engine.encode_image(task, label_config_xml)
        except EdgeSamError as exc:
            logger.warning("an image could not be encoded ahead: %s %s", exc.sentence, exc.detail)
        except Exception:
            logger.exception("an image could not be encoded ahead")
        finally:
            self._room.release()

    def _prediction(self, kind: str, value: Mapping[str, Any]) -> Prediction:
        item = {"id": fresh_id(), "type": kind, "origin": "manual", "value": dict(value)}
        return {"result": [item], "score": 0.0, "model_version": self._engine.model.version}
