"""The parts of a running backend, put together from its settings; knows no framework.

The Flask application and the framework's plugin both start from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backend.embeddings import EmbeddingStore
from backend.engine import Engine
from backend.images import ImageLoader
from backend.label_studio import LabelStudioClient
from backend.metrics import Metrics
from backend.model import ServedModel
from backend.refinement import Refinement
from backend.settings import Settings


@dataclass
class Service:
    """The parts of a running backend, put together from its settings."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    model: ServedModel = field(init=False)
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        """Build everything; nothing is loaded or fetched yet."""
        settings = self.settings
        self.model = ServedModel(settings.model)
        self.engine = Engine(
            self.model,
            ImageLoader(settings.images, LabelStudioClient(settings.label_studio)),
            EmbeddingStore(settings.embeddings, encodes_at_once=settings.model.encodes_at_once),
            Refinement(settings.refinement),
            settings.results,
            self.metrics,
            granularity=settings.granularity,
            max_pixels=settings.images.max_pixels,
        )
