"""The parts of a running backend, put together from its settings; knows no framework.

The Flask application and the framework's plugin both start from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from backend.directory_store import DirectoryStore
from backend.effort import Effort
from backend.effort_replay import Replay
from backend.effort_rows import EffortRows
from backend.embeddings import EmbeddingStore
from backend.encoding import Encoding
from backend.engine import Engine
from backend.images import ImageLoader
from backend.jobs import Jobs
from backend.label_studio import LabelStudioClient
from backend.machine_turns import MachineTurns
from backend.metrics import Metrics
from backend.models import Models
from backend.prefetch import Prefetch
from backend.queues import QueueSettings
from backend.refinement import Refinement
from backend.results import clean_mask
from backend.runs import Runs
from backend.second_look import SecondLook
from backend.settings import Settings
from backend.store import NO_STORE, Store, open_store
from backend.superseded import Clicks
from backend.swap import Swaps
from backend.training import Training
from backend.versions import Versions
from backend.working_set import WorkingSet


@dataclass
class Service:
    """The parts of a running backend, put together from its settings."""

    settings: Settings
    is_web: bool = True
    # one of the web processes that take turns to encode; workers are as many as were started
    metrics: Metrics = field(default_factory=Metrics)
    models: Models = field(init=False)
    encoding: Encoding = field(init=False)
    engine: Engine = field(init=False)
    prefetch: Prefetch = field(init=False)
    second_look: SecondLook = field(init=False)
    versions: Versions = field(init=False)
    training: Training = field(init=False)
    swaps: Swaps = field(init=False)
    effort: Effort = field(init=False)

    def __post_init__(self) -> None:
        """Build everything; nothing is loaded or fetched yet."""
        settings = self.settings
        shared = open_store(settings.store)
        label_studio = LabelStudioClient(settings.label_studio)
        self.versions = Versions(settings.versions)
        self.models = Models(settings.model, self.versions)
        self.training = Training(
            settings.training,
            Runs(settings.versions.data_dir),
            settings.model,
            settings.queues,
        )
        embeddings = EmbeddingStore(
            settings.embeddings,
            shared,
            encodes_at_once=settings.model.encodes_at_once,
            machine=self._machine_turns(),
        )
        self.encoding = Encoding(
            self.models,
            ImageLoader(settings.images, label_studio, kept=image_store(settings), shared=shared),
            embeddings,
            Jobs(settings.queues, self.metrics),
            self.metrics,
            max_pixels=settings.images.max_pixels,
        )
        refinement = Refinement(settings.refinement, shared)
        self.second_look = SecondLook(
            settings.second_look,
            embeddings.get,
            self.encoding.ahead,
            refinement,
            lambda mask: clean_mask(mask, settings.results),
            self.metrics,
            shared,
        )
        working_set = WorkingSet(self.encoding.now)
        self.swaps = Swaps(self.models, self.versions, working_set.warm)
        self.engine = Engine(
            self.models,
            self.encoding,
            refinement,
            settings.results,
            settings.granularity,
            self.metrics,
            Clicks(
                settings.server.clicks_at_once, wait_s=settings.embeddings.wait_s, shared=shared
            ),
            self.second_look,
            working_set,
        )
        self.prefetch = Prefetch(
            self.engine.images_of,
            self.encoding.ahead,
            label_studio,
            settings.prefetch,
            self.metrics,
        )
        self.effort = Effort(
            EffortRows(settings.versions.data_dir),
            Replay(self.models, self.encoding, settings.results).iou,
            max_pixels=settings.images.max_pixels,
        )
        self.metrics.show_effort(self.effort.versions)

    def start(self) -> None:
        """Load the model, watch for promotions and for runs that nobody carries out.

        In the process that serves: threads and graphs do not survive a fork.
        """
        self.models.own.start()
        self.swaps.start()
        self.training.start()

    def stop(self) -> None:
        """Watch no more; who still asks is answered."""
        self.swaps.stop()
        self.training.stop()

    @classmethod
    def that_only_encodes(cls, settings: Settings) -> Service:
        """One for a worker or a night's precomputing: it encodes itself, for the shared store.

        An embedding in its own memory would be out of everybody's reach, so it keeps none there.
        """
        embeddings = replace(settings.embeddings, cache_bytes=0)
        alone = replace(settings, embeddings=embeddings, queues=QueueSettings())
        return cls(alone, is_web=False)

    def _machine_turns(self) -> MachineTurns | None:
        """The turns of the web processes; None for who takes part in none."""
        cache_dir = self.settings.store.cache_dir
        if not self.is_web or cache_dir is None:
            return None
        return MachineTurns(cache_dir / "turns", self.settings.model.encodes_at_once)


def image_store(settings: Settings) -> Store:
    """Where this machine keeps the images that it fetched."""
    if settings.store.cache_dir and settings.images.cache_bytes:
        return DirectoryStore(settings.store.cache_dir / "images", settings.images.cache_bytes)
    return NO_STORE
