"""The bundle that is served: its version at once, its graphs a moment later.

Label Studio gives `/health` one second and `/setup` three, and opening the graphs may take longer.
So the manifest alone answers for the version, and a thread checks every hash, opens both graphs and
clicks once on a picture of its own before `/ready` says yes. A click that comes earlier waits.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgesam_core.bundle import Bundle, find_bundle
from edgesam_core.decode import Prompt
from edgesam_core.errors import BundleError, EdgeSamError, Unavailable
from edgesam_core.manifest import MANIFEST_NAME, Manifest
from edgesam_core.segmenter import Segmenter
from edgesam_core.session import RUNTIMES, Runtime, fastest_runtime, processors

logger = logging.getLogger(__name__)

_MODELS_DIR = Path(__file__).resolve().parents[1] / "models"


@dataclass(frozen=True)
class ModelSettings:
    """Which model is served, and on how many processors."""

    name: str = "default"
    # Name of a folder in the models folder, or the path of a bundle.
    models_dir: Path = _MODELS_DIR
    # Folder that holds bundles by name; `models/` of the repository.
    runtime: str = "auto"
    # Who runs the graphs: onnxruntime, openvino, openvino-bf16, or auto: the fastest that is
    # installed and opens them (decision 006).
    threads: int = 0
    # Processors for one image or click; 0 means all that the process may use.
    load_wait_s: float = 60.0
    # Seconds that a click waits for the model to load before it is answered with 503.

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.runtime not in ("auto", *RUNTIMES):
            raise ValueError(f"runtime should be one of auto, {', '.join(RUNTIMES)}.")
        if self.threads < 0:
            raise ValueError("threads should be 0 (all processors) or more.")
        if not 0 < self.load_wait_s <= 100:
            raise ValueError("load_wait_s should lie in 0..100: Label Studio gives up after 100 s.")

    def folder(self) -> Path:
        """The bundle's folder.

        Raises:
            BundleError: There is none; the sentence lists the names that there are.
        """
        return find_bundle(self.name, self.models_dir)

    def runtimes(self) -> list[Runtime]:
        """Who is to run the graphs on this machine, and who if that fails."""
        chosen = [name for name in RUNTIMES if name == self.runtime]
        return chosen or list(dict.fromkeys([fastest_runtime(), "onnxruntime"]))

    @property
    def encodes_at_once(self) -> int:
        """How many encodes the processors hold side by side: one per `threads` of them."""
        available = processors()
        return max(1, available // (self.threads or available))


class ServedModel:
    """One bundle, loaded once per process in the background; safe to share between threads."""

    def __init__(self, settings: ModelSettings) -> None:
        """Load nothing yet.

        Args:
            settings: Which bundle, and how.
        """
        self._settings = settings
        self._segmenter: Segmenter | None = None
        self._error: EdgeSamError | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself; quick, since no graph is read for it.

        Raises:
            BundleError: There is no such bundle, or its manifest cannot be read.
        """
        if self._segmenter is not None:
            return self._segmenter.manifest
        path = self._settings.folder()
        try:
            return Manifest.from_json((path / MANIFEST_NAME).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as exc:
            raise BundleError(
                f"The model folder {path.name!r} has no readable {MANIFEST_NAME}. Restore the "
                "bundle or choose another one.",
                detail=str(exc),
            ) from exc

    @property
    def version(self) -> str:
        """The bundle's version, never empty.

        Raises:
            BundleError: As `manifest`.
        """
        return self.manifest.version

    def start(self) -> None:
        """Begin to load, unless that was done in this process."""
        with self._lock:
            is_loading = self._thread is not None and self._thread.is_alive()
            if self._segmenter is None and self._error is None and not is_loading:
                # A fork copies the object but not the thread, so a child begins anew. No daemon:
                # ONNX Runtime aborts a process that ends while it opens a graph.
                self._thread = threading.Thread(target=self._load, name="load-model")
                self._thread.start()

    def segmenter(self, *, wait_s: float | None = None) -> Segmenter:
        """The open model.

        Args:
            wait_s: Seconds to wait for it; None means as long as the settings say.

        Raises:
            Unavailable: It is still loading.
            BundleError: It could not be loaded.
        """
        self.start()
        thread = self._thread
        if self._segmenter is None and thread is not None:
            thread.join(self._settings.load_wait_s if wait_s is None else wait_s)
        if self._error is not None:
            raise self._error
        if self._segmenter is None:
            raise Unavailable("The model is still loading. Try again in a moment.")
        return self._segmenter

    def _load(self) -> None:
        started = time.perf_counter()
        try:
            segmenter, runtime = self._open()
        except EdgeSamError as exc:
            logger.error("the model cannot be served: %s %s", exc.sentence, exc.detail)
            self._error = exc
        except Exception as exc:
            logger.exception("the model cannot be served")
            self._error = BundleError(detail=repr(exc))
        else:
            self._segmenter = segmenter
            logger.info(
                "serving model %s, version %s, input size %d, by %s; loaded in %.1f s",
                segmenter.manifest.name,
                segmenter.version,
                segmenter.manifest.input_size,
                runtime,
                time.perf_counter() - started,
            )

    def _open(self) -> tuple[Segmenter, Runtime]:
        """The model in the first runtime that runs it, and which that is."""
        bundle = Bundle.open(self._settings.folder())
        *faster, last = self._settings.runtimes()
        for runtime in faster:
            try:
                return self._open_in(runtime, bundle), runtime
            except EdgeSamError as exc:
                logger.warning("%s instead of %s: %s %s", last, runtime, exc.sentence, exc.detail)
        return self._open_in(last, bundle), last

    def _open_in(self, runtime: Runtime, bundle: Bundle) -> Segmenter:
        segmenter = Segmenter(bundle, threads=self._settings.threads or None, runtime=runtime)
        _try_out(segmenter)
        return segmenter


def _try_out(segmenter: Segmenter) -> None:
    """One click on a bright square: both graphs run, and the answer has the image's size."""
    image = np.full((96, 128, 3), 40, dtype=np.uint8)
    image[32:64, 48:80] = 220
    embedding = segmenter.embed(image)
    if not np.isfinite(embedding.image_embedding).all():
        raise BundleError("The model answers with no numbers. Make or fetch the bundle again.")
    (suggestion,) = segmenter.segment(embedding, [Prompt.from_clicks([(64, 48, 1)])])
    if suggestion.mask.original_size_hw != image.shape[:2]:
        raise BundleError("The model answers in another size. Make or fetch the bundle again.")
