"""Every object of some images asked for by box and clicks: prompts in, scores out.

The answers come from the bundle that is served, or from a network in training behind the same
methods. Masks are compared at the image's own size, after candidate choice and speck removal, as a
person would have got them. The encoder runs once per image; all its objects are asked together.

Differences to the official evaluation, where they show: clicks hit the centre of their pixel, the
ground truth is not scaled down and up again (``prompt_points.py``), and specks are removed.

Paper: EdgeSAM (arXiv 2312.06660), section 4.1 (boxes, centre points, refinement by clicks).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distillation.baseline_scores import BaselineScores
from distillation.candidate_rules import ious_by_rule
from distillation.click_rounds import Answerer, Turn, ask, box_prompt, click_prompt, play_rounds
from distillation.instances import AnnotatedImage
from distillation.metrics import MAX_CLICKS, STARTS, Score, clicks_column, mask_iou
from distillation.prompt_points import PROTOCOLS, ClickProtocol, random_click, seed_of
from distillation.worst_cases import WorstCases
from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.decode import Prompt
from edgesam_core.segmenter import Segmenter

logger = logging.getLogger(__name__)

WITH_LOGITS = ", earlier logits as mask input"
"""Ending of the method's name where logits were fed back."""

NAME_OF_PROTOCOL = {"paper": "", "sam": ", SAM's clicks"}
"""Ending of the method's name, before ``WITH_LOGITS``."""

BY_RULE = " by rule"
"""Ending of the column where the method is a rule of ``candidate_rules.py``."""

SHOWN_COLUMNS = ("box", "click", "click+2")
"""Columns that get a sheet of worst cases."""

ENOUGH_IOU = 0.9
"""From here on an object gets no further click when clicks are counted."""


@dataclass(frozen=True)
class MeasuringConfig:
    """What is asked."""

    starts: tuple[str, ...] = STARTS
    """First prompts, of ``metrics.STARTS``."""
    protocols: tuple[str, ...] = ("paper",)
    """How clicks are found, of ``prompt_points.PROTOCOLS``; each is a row."""
    corrections: int = 2
    """Corrective clicks after the first prompt."""
    mask_input: bool = False
    """Whether to ask everything again with the earlier logits as mask input."""
    count_clicks: bool = False
    """Whether to click up to ``metrics.MAX_CLICKS`` times, as RITM does."""
    candidate_rules: bool = False
    """Whether to compare rules for choosing one of the four masks; needs a ``Segmenter``."""


def score_images(
    answerer: Answerer | None,
    images: Iterable[AnnotatedImage],
    *,
    method: str = "model",
    config: MeasuringConfig | None = None,
    baselines: BaselineScores | None = None,
    worst: WorstCases | None = None,
) -> list[Score]:
    """Scores of one answerer, and of the baselines if asked for.

    Args:
        answerer: A ``Segmenter``, or a network in training behind the same two methods; None
            measures the baselines alone.
        images: From ``annotated_images``.
        method: What the answerer is called in the table.
        config: What is asked; the paper's protocol if None.
        baselines: Measured on the same objects.
        worst: Gets every answer to a box, a click, and two clicks more.

    Raises:
        RunError: An image or mask that cannot be used, by name.
    """
    config = config or MeasuringConfig()
    scores: list[Score] = []
    for annotated in images:
        image = annotated.read()
        truths = [instance.mask() for instance in annotated.instances]
        if answerer is not None:
            asked = _ImageAsked(answerer, annotated, image, truths, worst)
            scores += asked.scores(method, config)
        if baselines is not None:
            scores += baselines.measure(annotated, image, truths)
        logger.info("%s, image %d", annotated.set_name, annotated.image_id)
    return scores


class _ImageAsked:
    """One image in front of one answerer."""

    def __init__(
        self,
        answerer: Answerer,
        annotated: AnnotatedImage,
        image: ImageRGB,
        truths: Sequence[Mask],
        worst: WorstCases | None,
    ) -> None:
        self._answerer, self._annotated, self._image = answerer, annotated, image
        self._truths, self._worst = truths, worst
        self._embedding: Any = answerer.embed(image)
        self._seeds = [seed_of(annotated.set_name, i.annotation_id) for i in annotated.instances]

    def scores(self, method: str, config: MeasuringConfig) -> Iterator[Score]:
        """All scores of this image."""
        feeds = (False, True) if config.mask_input else (False,)
        for name in config.protocols:
            protocol = PROTOCOLS[name]
            for start in config.starts:
                turns = self._ask(self._first_prompts(start, protocol))
                for feed_logits in feeds:
                    row = method + NAME_OF_PROTOCOL[name] + WITH_LOGITS * feed_logits
                    for number, turns_now in enumerate(
                        play_rounds(
                            self._answerer,
                            self._embedding,
                            turns,
                            self._truths,
                            self._seeds,
                            corrective_click=protocol.correct,
                            corrections=config.corrections,
                            feed_logits=feed_logits,
                        )
                    ):
                        column = f"{start}+{number}" if number else start
                        yield from self._score(row, column, turns_now)
                        if not feed_logits and name == config.protocols[0]:
                            self._show(column, turns_now)
        if config.count_clicks:
            for feed_logits in feeds:
                yield from self._click_often(method + WITH_LOGITS * feed_logits, feed_logits)
        if config.candidate_rules and isinstance(self._answerer, Segmenter):
            for start in (start for start in config.starts if start != "box"):
                yield from self._try_rules(self._answerer, start, config)

    def _first_prompts(self, start: str, protocol: ClickProtocol) -> list[Prompt]:
        if start == "box":
            return [box_prompt(instance.box_xyxy) for instance in self._annotated.instances]
        if start == "click":
            return [click_prompt(protocol.first(truth)) for truth in self._truths]
        return [
            click_prompt(random_click(truth, seed_of(seed, "first")))
            for truth, seed in zip(self._truths, self._seeds, strict=True)
        ]

    def _ask(self, prompts: Sequence[Prompt]) -> list[Turn]:
        return ask(self._answerer, self._embedding, prompts)

    def _click_often(self, method: str, feed_logits: bool) -> Iterator[Score]:
        """RITM's protocol: clicks until the mask is good enough, each where it helps most."""
        protocol = PROTOCOLS["sam"]
        rounds = play_rounds(
            self._answerer,
            self._embedding,
            self._ask(self._first_prompts("click", protocol)),
            self._truths,
            self._seeds,
            corrective_click=protocol.correct,
            corrections=MAX_CLICKS - 1,
            feed_logits=feed_logits,
            enough_iou=ENOUGH_IOU,
        )
        for clicks, turns in enumerate(rounds, start=1):
            yield from self._score(method, clicks_column(clicks), turns)

    def _try_rules(
        self, segmenter: Segmenter, start: str, config: MeasuringConfig
    ) -> Iterator[Score]:
        prompts = self._first_prompts(start, PROTOCOLS[config.protocols[0]])
        chosen = ious_by_rule(segmenter, self._embedding, prompts, self._truths)
        for index, ious in enumerate(chosen):
            for rule, iou in ious.items():
                yield self._as_score(index, rule, start + BY_RULE, iou)

    def _score(self, method: str, column: str, turns: Sequence[Turn]) -> Iterator[Score]:
        for index, (turn, truth) in enumerate(zip(turns, self._truths, strict=True)):
            yield self._as_score(index, method, column, mask_iou(turn.mask, truth))

    def _as_score(self, index: int, method: str, column: str, iou: float) -> Score:
        return Score(
            self._annotated.set_name,
            self._annotated.image_id,
            self._annotated.instances[index].annotation_id,
            int(self._truths[index].sum()),
            self._truths[index].size,
            method,
            column,
            iou,
        )

    def _show(self, column: str, turns: Sequence[Turn]) -> None:
        if self._worst is None or column not in SHOWN_COLUMNS:
            return
        for instance, turn, truth in zip(
            self._annotated.instances, turns, self._truths, strict=True
        ):
            label = f"{self._annotated.set_name} {instance.annotation_id}"
            iou = mask_iou(turn.mask, truth)
            self._worst.offer(column, iou, self._image, turn, truth, label)
