"""From an image's address to its embedding: for a click, ahead of one, or as a worker's job.

All three know an image by the same key and encode it in the same way; they differ in who waits, and
in what is tried before this process encodes.

    click   the store by the address alone; the store by its bytes; a worker; here
    ahead   the same looks into the store; a worker; here, while nobody clicks
    job     here, since a worker is who was asked
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from backend import logs
from backend.embeddings import EmbeddingStore, Outcome, crop_key, embedding_key
from backend.images import ImageLoader
from backend.jobs import EncodeRequest, Jobs
from backend.metrics import Metrics
from backend.models import Models
from backend.superseded import Click
from edgesam_core.encode import Embedding
from edgesam_core.errors import ImageError
from edgesam_core.image import read_image
from edgesam_core.second_look import cut
from edgesam_core.segmenter import Segmenter

_WORKERS_S = 60.0  # for which an image that nobody waits for is left to the workers
_LOOK_AGAIN_S = 0.5

Ahead = Literal["warm", "encoded", "queued"]
"""It was encoded already; was encoded here; a worker will see to it."""


@dataclass(frozen=True)
class _Fetched:
    """An image whose bytes are here."""

    request: EncodeRequest
    # with their hash
    key: str
    # of its embedding
    encode: Callable[[], Embedding]


class Encoding:
    """Finds embeddings and makes those that are missing; safe between threads."""

    def __init__(
        self,
        models: Models,
        images: ImageLoader,
        embeddings: EmbeddingStore,
        jobs: Jobs,
        metrics: Metrics,
        *,
        max_pixels: int,
    ) -> None:
        """Put the parts together.

        Args:
            models: What encodes, each of them its own version.
            images: Where images come from.
            embeddings: Kept embeddings.
            jobs: Workers that encode, if there are any.
            metrics: Where times and hits are counted.
            max_pixels: Width x height of the largest image that is read.
        """
        self._models = models
        self._images = images
        self._embeddings = embeddings
        self._jobs = jobs
        self._metrics = metrics
        self._max_pixels = max_pixels

    def for_click(
        self, segmenter: Segmenter, request: EncodeRequest, click: Click
    ) -> tuple[str, Embedding]:
        """Key and embedding of an image that somebody waits for.

        Args:
            segmenter: What will decode it.
            request: The image, of the segmenter's version.
            click: Whoever waits, and may stop to.

        Raises:
            Superseded: Nobody wants the answer any more.
            EdgeSamError: Whatever stands between the address and its embedding.
        """
        with self._metrics.stage("fetch"):
            key = self._key_without_bytes(request)
        kept = self._embeddings.get(key) if key is not None else None
        if key is not None and kept is not None:
            self._count("hit")
            return key, kept
        with self._metrics.stage("fetch"):
            image = self._fetch(segmenter, request)
        asked = time.perf_counter()

        def encode() -> Embedding:
            self._metrics.observe_stage("wait", time.perf_counter() - asked)
            return image.encode()

        embedding, outcome = self._embeddings.get_or_encode(
            image.key,
            encode,
            ask_worker=lambda: self._jobs.encode(image.request, key=image.key),
            given_up=click.overtaken,
        )
        if outcome == "joined":
            self._metrics.observe_stage("wait", time.perf_counter() - asked)
        self._count(outcome)
        return image.key, embedding

    def ahead(self, request: EncodeRequest) -> Ahead:
        """Have an image encoded that nobody waits for: by a worker, or here when nobody clicks.

        An image that is encoded already costs a look into the store and no fetch.

        Raises:
            EdgeSamError: Whatever stands between the address and its embedding.
        """
        segmenter = self._models.version(request.version).segmenter()
        key = self._key_without_bytes(request)
        if key is not None and self._embeddings.has(key):
            return "warm"
        image = self._fetch(segmenter, request)
        if self._embeddings.has(image.key):
            return "warm"
        if self._jobs.prefetch(image.request, key=image.key):
            return "queued"
        return "encoded" if self._embeddings.encode_ahead(image.key, image.encode) else "warm"

    def unhurried(self, request: EncodeRequest) -> Embedding:
        """The embedding of an image that nobody waits for; if it is not kept, clicks go first.

        Raises:
            EdgeSamError: As `ahead`.
        """
        segmenter = self._models.version(request.version).segmenter()
        is_queued = self.ahead(request) == "queued"
        image = self._fetch(segmenter, request)
        deadline = time.monotonic() + _WORKERS_S
        while is_queued and not self._embeddings.has(image.key) and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN_S)
        return self._embeddings.get_or_encode(image.key, image.encode)[0]

    def job(self, request: EncodeRequest) -> Outcome:
        """Encode an image into the shared store; "hit" where it lies there already.

        Raises:
            BundleError: There is no such version here.
            ImageError: The address gives other bytes than those that were clicked on.
            EdgeSamError: Whatever else stands between the address and its embedding.
        """
        segmenter = self._models.version(request.version).segmenter()
        image = self._fetch(segmenter, request)
        if request.image_key not in (None, image.request.image_key):
            raise ImageError(
                "The image at this address has changed since it was clicked on. Click again."
            )
        return self._embeddings.get_or_encode(image.key, image.encode)[1]

    def now(self, request: EncodeRequest) -> Outcome:
        """Have an image encoded and wait for it, though nobody has clicked yet.

        Raises:
            EdgeSamError: As `ahead`.
        """
        image = self._fetch(self._models.version(request.version).segmenter(), request)
        return self._embeddings.get_or_encode(
            image.key,
            image.encode,
            ask_worker=lambda: self._jobs.encode(image.request, key=image.key),
        )[1]

    def _key_without_bytes(self, request: EncodeRequest) -> str | None:
        """The embedding's key, where the image's bytes are known without having them."""
        sha256 = self._images.key(request.uri, request.task_id)
        return None if sha256 is None else _key(request, sha256)

    def _fetch(self, segmenter: Segmenter, request: EncodeRequest) -> _Fetched:
        image = self._images.fetch(request.uri, task_id=request.task_id)

        def encode() -> Embedding:
            with self._metrics.stage("read"):
                pixels = read_image(image.data, max_pixels=self._max_pixels)
                if request.crop_xyxy is not None:
                    pixels = cut(pixels, request.crop_xyxy)
            with self._metrics.stage("encode"):
                return segmenter.embed(pixels, with_proposals=request.with_proposals)

        fetched = replace(request, image_key=image.sha256)
        return _Fetched(fetched, _key(request, image.sha256), encode)

    def _count(self, outcome: Outcome) -> None:
        """Count how an embedding was found; one cold image makes a request cold."""
        self._metrics.embedding_cache.labels(outcome).inc()
        record = logs.current()
        if record.temperature != "cold":
            record.temperature = "warm" if outcome == "hit" else "cold"


def _key(request: EncodeRequest, sha256: str) -> str:
    key = embedding_key(sha256, request.version, with_proposals=request.with_proposals)
    return key if request.crop_xyxy is None else crop_key(key, request.crop_xyxy)
