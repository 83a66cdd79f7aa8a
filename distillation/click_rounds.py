"""An annotator in a loop: a first prompt, then clicks where the answer is wrong.

Knows neither ONNX nor PyTorch: whatever embeds an image and answers prompts can be measured, so
that a network in training is judged by the same rules as the bundle that is served.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from distillation.metrics import mask_iou
from distillation.prompt_points import Click, CorrectiveClick, seed_of
from edgesam_core.arrays import BoxXYXY, ImageRGB, LogitsMap, Mask
from edgesam_core.clean import remove_specks
from edgesam_core.decode import Prompt
from edgesam_core.windowed_mask import WindowedMask

MIN_REGION_PX = 64
"""Islands and holes below this are removed before measuring, as the service does by default."""


class Answer(Protocol):
    """What is needed of the answer to one prompt."""

    @property
    def mask(self) -> WindowedMask:
        """The mask that a person would be shown, at the original size."""

    @property
    def low_res_logits(self) -> LogitsMap:
        """[S/4, S/4] logits of that mask, to be fed back as mask input."""


class Answerer(Protocol):
    """Anything that can be asked; ``edgesam_core.segmenter.Segmenter`` is one."""

    def embed(self, image: ImageRGB) -> Any:
        """Encode [H, W, 3] uint8 RGB, once per image."""

    def segment(self, embedding: Any, prompts: Sequence[Prompt]) -> Sequence[Answer]:
        """One answer per prompt, in order."""


@dataclass(frozen=True)
class Turn:
    """One prompt and what came back."""

    prompt: Prompt
    mask: Mask
    """[H, W] bool, without specks."""
    low_res_logits: LogitsMap


def box_prompt(box_xyxy: BoxXYXY) -> Prompt:
    """A box alone."""
    return Prompt(box_xyxy=np.asarray(box_xyxy, np.float32))


def click_prompt(click: Click) -> Prompt:
    """A click alone."""
    return Prompt.from_clicks([click])


def with_click(turn: Turn, click: Click, *, feed_logits: bool) -> Prompt:
    """The prompt of a turn and one click more.

    Args:
        turn: What was asked and answered.
        click: The new one.
        feed_logits: Whether the logits of the answer go in as mask input.
    """
    *point, label = click
    return Prompt(
        point_coords=np.append(turn.prompt.point_coords, np.array([point], np.float32), axis=0),
        point_labels=np.append(turn.prompt.point_labels, np.float32(label)),
        box_xyxy=turn.prompt.box_xyxy,
        mask_input=turn.low_res_logits if feed_logits else None,
    )


def ask(answerer: Answerer, embedding: Any, prompts: Sequence[Prompt]) -> list[Turn]:
    """One turn per prompt; all prompts of an image go to the answerer together."""
    if not prompts:
        return []
    answers = answerer.segment(embedding, prompts)
    return [
        Turn(
            prompt,
            remove_specks(answer.mask, min_area_px=MIN_REGION_PX).full(),
            answer.low_res_logits,
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def play_rounds(
    answerer: Answerer,
    embedding: Any,
    turns: list[Turn],
    truths: Sequence[Mask],
    seeds: Sequence[int],
    *,
    corrective_click: CorrectiveClick,
    corrections: int = 2,
    feed_logits: bool = False,
    enough_iou: float = 1.0,
) -> Iterator[list[Turn]]:
    """Corrective clicks after the first answers for some objects of one image.

    An object that is good enough, or with nothing left to click on, keeps its last answer.

    Args:
        answerer: Who is asked.
        embedding: Of the image, made by it.
        turns: The first answers, one per object, see ``ask``.
        truths: One annotated mask per object, [H, W] bool.
        seeds: One per object, for drawing its clicks.
        corrective_click: How the next click is found.
        corrections: How many rounds follow the first.
        feed_logits: Whether each answer's logits are the mask input of the next round.
        enough_iou: From this IoU on an object gets no further click.

    Yields:
        ``corrections + 1`` rounds with one turn per object, the first being ``turns``.
    """
    yield turns
    for number in range(1, corrections + 1):
        asked: dict[int, Prompt] = {}
        for index, (turn, truth) in enumerate(zip(turns, truths, strict=True)):
            if enough_iou < 1 and mask_iou(turn.mask, truth) >= enough_iou:
                continue
            clicked = turn.prompt.point_coords
            click = corrective_click(turn.mask, truth, seed_of(seeds[index], number), clicked)
            if click is not None:
                asked[index] = with_click(turn, click, feed_logits=feed_logits)
        answered = dict(zip(asked, ask(answerer, embedding, list(asked.values())), strict=True))
        turns = [answered.get(index, turn) for index, turn in enumerate(turns)]
        yield turns
