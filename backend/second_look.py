"""A second look at small objects: encoded once the first answer is sent, used by the next click.

The first answer never waits. Where its mask covers less than 2 % of the image, the crop around it
(edgesam_core/second_look.py) is encoded in the background, after every click that wants to encode
(turns.py), by a worker or here. Its embedding lies in the embedding store like any other, under the
image's key and the crop. The next click on that object is decoded on it if it is there by then, and
on the whole image if not: so the same second click may be answered with either mask, depending on
how soon it comes. The first one always sees the whole image.

Which crop belongs to a click is kept under the prompt that was answered, as earlier logits are
(refinement.py): no sessions, any process can answer. The whole image is used where a click lies
outside the crop, and where the mask reaches the crop's border, behind which it may go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from backend import logs
from backend.byte_budget import ByteBudget
from backend.embeddings import crop_key
from backend.jobs import EncodeRequest
from backend.metrics import Metrics
from backend.refinement import Refinement, prompt_hash, without_last_click
from backend.store import NO_STORE, Store
from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.errors import EdgeSamError
from edgesam_core.second_look import (
    Crop,
    crop_for_next_click,
    logits_in_crop,
    mask_in_image,
    prompt_in_crop,
)
from edgesam_core.segmenter import Segmenter, Suggestion
from edgesam_core.windowed_mask import WindowedMask

logger = logging.getLogger(__name__)

ON, OFF = "on", "off"

MOST_WAITING = 8
"""Crops that may wait to be encoded; of more than that the oldest are forgotten."""

_CROPS_BYTES = 1024 * 1024
_CROP_BYTES = 200  # with its key, about


@dataclass(frozen=True)
class SecondLookSettings:
    """Whether small objects are looked at twice."""

    mode: str = OFF
    # `on`: an object under 2 % of the image is encoded again by itself after the first answer,
    # which sharpens the answers to the next clicks on it; `off`: never (docs/second_look.md).

    def __post_init__(self) -> None:
        """Refuse what is no choice."""
        if self.mode not in (ON, OFF):
            raise ValueError(f"mode should be {ON} or {OFF}, not {self.mode!r:.40}.")


@dataclass(frozen=True, eq=False)
class Look:
    """The answer to a prompt, and the embedding that it was decoded on: the image's or a crop's."""

    suggestion: Suggestion
    # its mask in the image's frame, its logits in the frame of what was decoded
    key: str
    # of the embedding
    prompt: Prompt
    # in its frame


class SecondLook:
    """Knows which crop the next click may use, and has it encoded; safe between threads."""

    def __init__(
        self,
        settings: SecondLookSettings,
        find: Callable[[str], Embedding | None],
        encode_ahead: Callable[[EncodeRequest], object],
        refinement: Refinement,
        clean: Callable[[WindowedMask], WindowedMask],
        metrics: Metrics,
        shared: Store = NO_STORE,
    ) -> None:
        """Start no thread before there is a crop to encode.

        Args:
            settings: Whether there is a second look at all.
            find: An embedding by its key, if it is kept; makes none.
            encode_ahead: Has a crop encoded when nobody clicks.
            refinement: Kept logits of earlier masks, of crops too.
            clean: A mask without specks, as it is shown.
            metrics: Where outcomes are counted.
            shared: What all processes share; `NO_STORE` for memory alone.
        """
        self._is_on = settings.mode == ON
        self._find = find
        self._encode_ahead = encode_ahead
        self._refinement = refinement
        self._clean = clean
        self._metrics = metrics
        self._shared = shared
        self._crops: ByteBudget[Crop] = ByteBudget(_CROPS_BYTES)
        self._waiting: deque[EncodeRequest] = deque(maxlen=MOST_WAITING)
        self._pool = ThreadPoolExecutor(1, "second-look")
        self._complaints = logs.Complaints(logger)

    def answer(
        self, segmenter: Segmenter, key: str, embedding: Embedding, prompt: Prompt
    ) -> Look | None:
        """The answer to the next click on a small object; None: ask the whole image.

        Args:
            segmenter: Whose embeddings these are.
            key: Of the whole image's embedding.
            embedding: Of the whole image.
            prompt: In its pixels, with the earlier logits of its frame if there are any.
        """
        crop = self._crop_of_earlier(key, prompt)
        moved = None if crop is None else prompt_in_crop(prompt, crop)
        if crop is None or moved is None:
            return None
        its_key = crop_key(key, crop.xyxy)
        closer = self._find(its_key)
        if closer is None:
            self._metrics.second_looks.labels("late").inc()
            return None
        moved = self._refinement.extend(its_key, moved)
        if moved.mask_input is None and prompt.mask_input is not None:
            earlier = logits_in_crop(prompt.mask_input, embedding, crop, closer)
            moved = replace(moved, mask_input=earlier)
        (suggestion,) = segmenter.segment(closer, [moved])
        # A speck at the crop's border is no reason to leave it.
        mask = mask_in_image(self._clean(suggestion.mask), crop)
        if not crop.holds(mask):
            self._metrics.second_looks.labels("left").inc()
            return None
        self._metrics.second_looks.labels("used").inc()
        return Look(replace(suggestion, mask=mask), its_key, moved)

    def answered(
        self, key: str, request: EncodeRequest, prompt: Prompt, mask: WindowedMask
    ) -> None:
        """Note what was shown for a prompt: where it is small, a crop will be encoded.

        Args:
            key: Of the whole image's embedding.
            request: How that was asked for.
            prompt: In pixels of the image.
            mask: What was shown, of the whole image.
        """
        if not self._is_on:
            return
        crop = crop_for_next_click(mask, prompt, self._crop_of_earlier(key, prompt))
        if crop is None:
            return
        name = _name(key, prompt)
        self._crops.put(name, crop, _CROP_BYTES)
        self._shared.put(name, _crop_to_bytes(crop))
        self._waiting.append(replace(request, crop_xyxy=crop.xyxy))

    def begin(self) -> None:
        """Encode what waits: the answer is sent."""
        if self._waiting:
            try:
                self._pool.submit(self.encode_waiting)
            except RuntimeError:  # the process ends, or may have no more threads
                self._waiting.clear()

    def encode_waiting(self) -> None:
        """Encode the newest crop until none is left; `begin` does it in a thread."""
        logs.begin("second-look")
        while True:
            try:
                self._encode_ahead(self._waiting.pop())
            except IndexError:
                return
            except EdgeSamError as exc:
                self._complaints.warn(f"No second look at a small object: {exc.sentence}")
            except Exception:
                logger.exception("something went wrong at the second look at a small object")

    def _crop_of_earlier(self, key: str, prompt: Prompt) -> Crop | None:
        """The crop that was noted for this prompt as it was one click ago."""
        earlier = without_last_click(prompt) if self._is_on else None
        if earlier is None:
            return None
        name = _name(key, earlier)
        crop = self._crops.get(name)
        if crop is not None:
            return crop
        data = self._shared.get(name)
        return None if data is None else _bytes_to_crop(data)


def _name(key: str, prompt: Prompt) -> str:
    return f"{key}:{prompt_hash(prompt)}:crop"


def _crop_to_bytes(crop: Crop) -> bytes:
    return np.array([*crop.xyxy, *crop.original_size_hw], dtype="<i4").tobytes()


def _bytes_to_crop(data: bytes) -> Crop | None:
    """The crop; None where another version of this file wrote it."""
    if len(data) != 24:
        return None
    x0, y0, x1, y1, height, width = (int(number) for number in np.frombuffer(data, dtype="<i4"))
    return Crop(x0, y0, x1, y1, (height, width))
