"""The earlier mask of a prompt that grew by one click, fed back to the decoder.

Label Studio sends all clicks of an object each time. Where the clicks without the last one were
answered a moment ago, the logits of the mask that was shown then go in as mask input, so that a
correction keeps what was right. They are found under the embedding's key and a hash of the earlier
prompt: no sessions, no user ids. They lie in memory and in the shared store, so that the next click
may reach any process. Where they are gone, the clicks alone are decoded.

Done only where the bundle's manifest says that it helps (`refines_with_mask_input`).

Source:
    Segment Anything (arXiv 2304.02643), appendix A, "Training algorithm": the unthresholded logits
    of the previous iteration are an additional prompt for the next one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from backend.byte_budget import ByteBudget
from backend.store import NO_STORE, Store
from edgesam_core.arrays import LogitsMap
from edgesam_core.decode import Prompt

Logits16 = npt.NDArray[np.float16]


@dataclass(frozen=True)
class RefinementSettings:
    """How many earlier masks are kept."""

    cache_bytes: int = 16 * 1024 * 1024
    # Bytes of memory for earlier logits; one takes 0.13 MB at input size 1024.

    def __post_init__(self) -> None:
        """Refuse a negative budget."""
        if self.cache_bytes < 0:
            raise ValueError("cache_bytes should not be negative.")


class Refinement:
    """Logits of the masks that were shown, by image and prompt; thread-safe."""

    def __init__(self, settings: RefinementSettings, shared: Store = NO_STORE) -> None:
        """Start with an empty memory.

        Args:
            settings: Budget of the memory.
            shared: What all processes share; `NO_STORE` for memory alone.
        """
        self._memory: ByteBudget[Logits16] = ByteBudget(settings.cache_bytes)
        self._shared = shared

    def extend(self, embedding_key: str, prompt: Prompt) -> Prompt:
        """The prompt, with the earlier logits if it extends an answered prompt by one click.

        Args:
            embedding_key: Of the image and the model.
            prompt: In original pixels.
        """
        earlier = without_last_click(prompt)
        if earlier is None:
            return prompt
        low_res_logits = self._find(_key(embedding_key, earlier))
        if low_res_logits is None:
            return prompt
        return replace(prompt, mask_input=low_res_logits.astype(np.float32))

    def remember(self, embedding_key: str, prompt: Prompt, low_res_logits: LogitsMap) -> None:
        """Keep the logits of the candidate that is shown for a prompt.

        Args:
            embedding_key: Of the image and the model.
            prompt: As it was answered.
            low_res_logits: [S/4, S/4] of that one candidate.
        """
        # Beyond +-1000 the sigmoid is flat; float16 ends at 65504.
        narrow = low_res_logits.clip(-1000, 1000).astype(np.float16)
        key = _key(embedding_key, prompt)
        self._memory.put(key, narrow, narrow.nbytes)
        self._shared.put(key, narrow.tobytes())

    def _find(self, key: str) -> Logits16 | None:
        """The logits in float16, from memory or else from the shared store."""
        kept = self._memory.get(key)
        if kept is not None:
            return kept
        data = self._shared.get(key)
        if data is None:
            return None
        flat = np.frombuffer(data, dtype=np.float16)
        side = math.isqrt(flat.size)
        return flat.reshape(side, side)


def without_last_click(prompt: Prompt) -> Prompt | None:
    """The prompt as it was one click ago; None where there was nothing before it."""
    count = len(prompt.point_coords)
    if count == 0 or (count == 1 and prompt.box_xyxy is None):
        return None
    return Prompt(prompt.point_coords[:-1], prompt.point_labels[:-1], prompt.box_xyxy)


def prompt_hash(prompt: Prompt) -> str:
    """A hash of clicks and box, to a hundredth of a pixel; the mask input does not count."""
    box = np.zeros(0) if prompt.box_xyxy is None else prompt.box_xyxy
    numbers = np.concatenate([prompt.point_coords.ravel(), prompt.point_labels, box])
    shape = np.array([len(prompt.point_coords), len(box)])
    rounded = np.round(numbers.astype(np.float64) * 100).astype("<i8")
    return hashlib.sha256(shape.astype("<i8").tobytes() + rounded.tobytes()).hexdigest()


def _key(embedding_key: str, prompt: Prompt) -> str:
    return f"{embedding_key}:{prompt_hash(prompt)}"
