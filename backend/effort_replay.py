"""A suggestion made again from its stored prompt by the version that made it, to see what changed.

The earlier clicks are answered first, so that each has the mask input that it had on the page
(refinement.py). Which clicks had one then is not stored: where the shape's hash says that the last
click was answered alone, it is here, too. A crop of a second look is not made again, nor what a
server set otherwise would have drawn: then the hash differs, and the IoU is of what comes closest.

Needs the image and its embedding: mostly kept since the click, else made when nobody clicks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np

from backend.effort_count import Accepted
from backend.encoding import Encoding
from backend.jobs import EncodeRequest
from backend.label_config import Control, Output, Shape
from backend.models import Models
from backend.refinement import Refinement, RefinementSettings, without_last_click
from backend.regions import region_mask, regions_of
from backend.results import ResultSettings, Suggested, clean_mask, regions_for
from edgesam_core.arrays import Mask
from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.errors import ImageError, PromptError
from edgesam_core.segmenter import Segmenter

_ANY_KEY = "replayed"
_MOST_CLICKS = 100


class Replay:
    """Makes suggestions again; safe between threads."""

    def __init__(self, models: Models, encoding: Encoding, settings: ResultSettings) -> None:
        """Put the parts together.

        Args:
            models: The versions that there are.
            encoding: Where embeddings come from.
            settings: How masks become regions.
        """
        self._models = models
        self._encoding = encoding
        self._settings = settings

    def iou(self, accepted: Accepted) -> float:
        """How much of a suggestion is in what was submitted, both in the same form.

        Returns:
            The IoU of the two masks, 0..1.

        Raises:
            BundleError: The version is not here any more.
            ImageError: The image is not the one that was labelled.
            PromptError: The prompt is none that we stored.
            EdgeSamError: Whatever else stands between the address and the suggestion.
        """
        segmenter = self._models.version(accepted.version).segmenter()
        prompt = _read_prompt(accepted.prompt)
        has_proposals = accepted.prompt.get("proposed_box") is not None
        request = EncodeRequest(
            accepted.uri, accepted.task_id, None, segmenter.version, has_proposals
        )
        embedding = self._encoding.unhurried(request)
        if embedding.original_size_hw != accepted.submitted.original_size_hw:
            raise ImageError("The image has another size than when it was labelled.")
        suggested = self._as_shown(segmenter, embedding, prompt, accepted)
        submitted = accepted.submitted.full()
        both, either = int((suggested & submitted).sum()), int((suggested | submitted).sum())
        return both / max(1, either)

    def _as_shown(
        self, segmenter: Segmenter, embedding: Embedding, prompt: Prompt, accepted: Accepted
    ) -> Mask:
        """[H, W] bool, the suggestion in the form in which the page showed it.

        Raises:
            PromptError: The version finds nothing there.
        """
        shown: Mask | None = None
        for suggested in self._suggest(segmenter, embedding, prompt, accepted):
            regions = regions_for(suggested, _output(accepted.shape), self._settings)
            is_exact = regions[0]["meta"]["edgesam"]["shape_hash"] == accepted.shape_hash
            if shown is None or is_exact:
                shown = region_mask(regions_of(regions)[0], embedding.original_size_hw)
            if is_exact:
                break
        if shown is None:
            raise PromptError("The model finds nothing there.")
        return shown

    def _suggest(
        self, segmenter: Segmenter, embedding: Embedding, prompt: Prompt, accepted: Accepted
    ) -> Iterator[Suggested]:
        """What may have been shown, the likeliest first: with what was before it, then alone."""
        before = _steps(prompt)[:-1] if segmenter.manifest.refines_with_mask_input else []
        refinement = Refinement(RefinementSettings())
        for step in before:
            extended = refinement.extend(_ANY_KEY, step)
            (answer,) = segmenter.segment(embedding, [extended])
            refinement.remember(_ANY_KEY, extended, answer.low_res_logits)
        asked = refinement.extend(_ANY_KEY, prompt)
        if (proposed := accepted.prompt.get("proposed_box")) is not None:
            asked = replace(asked, box_xyxy=_numbers(proposed, (4,)))
        for ask in (asked,) if asked.mask_input is None else (asked, prompt):
            (answer,) = segmenter.segment(embedding, [ask])
            mask = clean_mask(answer.mask, self._settings)
            if mask.area:
                yield Suggested(mask, prompt, answer.score, None, "", segmenter.version)


def _steps(prompt: Prompt) -> list[Prompt]:
    """The prompts that were answered on the way to this one; only negative clicks never are."""
    steps: list[Prompt] = []
    step: Prompt | None = prompt
    while step is not None:
        if step.box_xyxy is not None or step.point_labels.any():
            steps.insert(0, step)
        step = without_last_click(step)
    return steps


def _read_prompt(stored: Any) -> Prompt:
    """A prompt as results.py stores it.

    Raises:
        PromptError: It is none.
    """
    box, points = stored.get("box"), stored.get("points") or []
    if not isinstance(points, list) or len(points) > _MOST_CLICKS:
        raise PromptError("The stored prompt is none.")
    try:
        return Prompt(
            _numbers(points, (-1, 2)),
            _numbers(stored.get("labels") or [], (-1,)),
            None if box is None else _numbers(box, (4,)),
        )
    except ValueError as exc:
        raise PromptError("The stored prompt is none.") from exc


def _numbers(stored: object, shape: tuple[int, ...]) -> Any:
    """Stored numbers as float32 of a shape.

    Raises:
        PromptError: They are not numbers of that shape.
    """
    try:
        return np.asarray(stored, dtype=np.float32).reshape(shape)
    except (ValueError, TypeError) as exc:
        raise PromptError("The stored prompt is none.") from exc


def _output(shape: str) -> Output:
    """A control of that shape, as it takes one to know what a suggestion looks like in it."""
    control = Control(
        shape=cast(Shape, shape), name="", to_names=(), labels=(), has_labels=False,
        takes_any_label=False, is_smart=False,
    )  # fmt: skip
    return Output(control, None, ())
