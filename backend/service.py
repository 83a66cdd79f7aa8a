"""The parts of a running backend, put together from its settings; knows no framework.

The Flask application and the framework's plugin both start from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from backend.directory_store import DirectoryStore
from backend.embeddings import EmbeddingStore
from backend.encoding import Encoding
from backend.engine import Engine
from backend.images import ImageLoader
from backend.jobs import Jobs
from backend.label_studio import LabelStudioClient
from backend.metrics import Metrics
from backend.model import ServedModel
from backend.prefetch import Prefetch
from backend.queues import QueueSettings
from backend.refinement import Refinement
from backend.settings import Settings
from backend.store import NO_STORE, Store, open_store


@dataclass
class Service:
    """The parts of a running backend, put together from its settings."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    model: ServedModel = field(init=False)
    encoding: Encoding = field(init=False)
    engine: Engine = field(init=False)
    prefetch: Prefetch = field(init=False)

    def __post_init__(self) -> None:
        """Build everything; nothing is loaded or fetched yet."""
        settings = self.settings
        shared = open_store(settings.store)
        label_studio = LabelStudioClient(settings.label_studio)
        self.model = ServedModel(settings.model)
        self.encoding = Encoding(
            self.model,
            ImageLoader(settings.images, label_studio, kept=_image_store(settings), shared=shared),
            EmbeddingStore(
                settings.embeddings, shared, encodes_at_once=settings.model.encodes_at_once
            ),
            Jobs(settings.queues, self.metrics),
            self.metrics,
            max_pixels=settings.images.max_pixels,
        )
        self.engine = Engine(
            self.model,
            self.encoding,
            Refinement(settings.refinement, shared),
            settings.results,
            settings.granularity,
            self.metrics,
        )
        self.prefetch = Prefetch(
            self.engine.images_of,
            self.encoding.ahead,
            label_studio,
            settings.prefetch,
            self.metrics,
        )

    @classmethod
    def that_only_encodes(cls, settings: Settings) -> Service:
        """One for a worker or a night's precomputing: it encodes itself, for the shared store.

        An embedding in its own memory would be out of everybody's reach, so it keeps none there.
        """
        embeddings = replace(settings.embeddings, cache_bytes=0)
        return cls(replace(settings, embeddings=embeddings, queues=QueueSettings()))


def _image_store(settings: Settings) -> Store:
    """Where this machine keeps the images that it fetched."""
    if settings.store.cache_dir and settings.images.cache_bytes:
        return DirectoryStore(settings.store.cache_dir / "images", settings.images.cache_bytes)
    return NO_STORE
