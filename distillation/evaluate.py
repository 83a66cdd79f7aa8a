"""How good the masks are: mean IoU of the bundle that is served, beside what has learned nothing.

    python -m distillation.evaluate BUNDLE DATASET [--ids odd] [--baselines] [--out DIR]

Every object is asked for by its box and by one click in its middle, then gets up to two corrective
clicks after either. Masks are compared at the image's own size, after candidate choice and speck
removal, as a person would have got them. ``DATASET`` is a set (``annotations.json`` and
``images/``), a folder of sets, or an annotation file. Choose between runs with ``--ids even``,
report ``--ids odd``.

With ``--mask-input`` everything is asked a second time with the earlier logits as mask input, which
decides whether the bundle's manifest may say ``refines_with_mask_input``.

Paper: EdgeSAM (arXiv 2312.06660), section 4.1 (boxes, centre points, refinement by clicks).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distillation.annotated_images import MIN_AREA_PX, AnnotatedImage, annotated_images
from distillation.baseline_scores import BaselineScores
from distillation.click_rounds import Answerer, box_prompt, click_prompt, play_rounds
from distillation.metrics import (
    Score,
    instance_counts,
    mask_iou,
    mean_ious,
    mean_ious_by_set,
    refines_with_mask_input,
    to_markdown,
)
from distillation.prompt_points import CORRECTIVE_CLICKS, centre_click, seed_of
from distillation.worst_cases import WorstCases
from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.bundle import Bundle
from edgesam_core.errors import EdgeSamError
from edgesam_core.segmenter import Segmenter

logger = logging.getLogger(__name__)

WITH_LOGITS = ", earlier logits as mask input"
"""Ending of the method's name where logits were fed back."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is asked."""

    corrective_click: str = "wrong-pixel"
    """How the next click is found, see ``prompt_points.CORRECTIVE_CLICKS``."""
    corrections: int = 2
    """Corrective clicks after the first prompt."""
    mask_input: bool = False
    """Whether to ask everything again with the earlier logits as mask input."""


def evaluate(
    answerer: Answerer | None,
    images: Iterable[AnnotatedImage],
    *,
    method: str = "model",
    config: EvaluationConfig | None = None,
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
        worst: Gets every answer to a box, a click, and two clicks.

    Raises:
        RunError: An image or mask that cannot be used, by name.
    """
    config = config or EvaluationConfig()
    scores: list[Score] = []
    for annotated in images:
        image = annotated.read()
        truths = [instance.mask() for instance in annotated.instances]
        if answerer is not None:
            scores += _answer_scores(answerer, annotated, image, truths, method, config, worst)
        if baselines is not None:
            scores += baselines.measure(annotated, image, truths)
        logger.info("%s, image %d", annotated.set_name, annotated.image_id)
    return scores


def _answer_scores(
    answerer: Answerer,
    annotated: AnnotatedImage,
    image: ImageRGB,
    truths: Sequence[Mask],
    method: str,
    config: EvaluationConfig,
    worst: WorstCases | None,
) -> Iterator[Score]:
    """All scores of one image: the encoder runs once, all its objects are asked together."""
    embedding = answerer.embed(image)
    firsts = {
        "box": [box_prompt(instance.box_xyxy) for instance in annotated.instances],
        "click": [click_prompt(centre_click(truth)) for truth in truths],
    }
    for start, first in firsts.items():
        for feed_logits in (False, True) if config.mask_input else (False,):
            rounds = play_rounds(
                answerer,
                embedding,
                first,
                truths,
                [seed_of(annotated.set_name, i.annotation_id) for i in annotated.instances],
                corrective_click=CORRECTIVE_CLICKS[config.corrective_click],
                corrections=config.corrections,
                feed_logits=feed_logits,
            )
            name = method + WITH_LOGITS if feed_logits else method
            for number, turns in enumerate(rounds):
                column = f"{start}+{number}" if number else start
                for instance, turn, truth in zip(annotated.instances, turns, truths, strict=True):
                    iou = mask_iou(turn.mask, truth)
                    yield Score(
                        annotated.set_name,
                        annotated.image_id,
                        instance.annotation_id,
                        int(truth.sum()),
                        name,
                        column,
                        iou,
                    )
                    if worst is not None and not feed_logits and column in SHOWN_COLUMNS:
                        label = f"{annotated.set_name} {instance.annotation_id}"
                        worst.offer(column, iou, image, turn, truth, label)


SHOWN_COLUMNS = ("box", "click", "click+2")
"""Columns that get a sheet of worst cases."""


def report(scores: Sequence[Score], method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, ready for JSON: settings, means, and every single score."""
    means = mean_ious(scores)
    result: dict[str, Any] = {
        "settings": settings,
        "counts": instance_counts(scores),
        "miou_percent": mean_ious_by_set(scores),
    }
    if method + WITH_LOGITS in means:
        without, with_logits = means[method], means[method + WITH_LOGITS]
        result["refines_with_mask_input"] = refines_with_mask_input(without, with_logits)
    result["scores"] = [asdict(score) for score in scores]
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when everything was measured."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING)
    config = EvaluationConfig(options.clicks, mask_input=options.mask_input)
    out_dir: Path | None = options.out
    worst = WorstCases() if out_dir else None
    started = time.monotonic()
    try:
        answerer, method = None, "none"
        if options.bundle != "none":
            bundle = Bundle.open(Path(options.bundle))
            answerer = Segmenter(bundle, threads=options.threads)
            method = f"{bundle.manifest.name} {bundle.manifest.version}"
        images = annotated_images(
            options.dataset,
            options.images,
            half=options.ids,
            per_image=options.per_image,
            limit=options.limit,
        )
        baselines = BaselineScores(options.baseline_cache) if options.baselines else None
        scores = evaluate(
            answerer, images, method=method, config=config, baselines=baselines, worst=worst
        )
    except EdgeSamError as exc:
        print(exc.sentence, file=sys.stderr)
        return 1
    if not scores:
        print("Nothing was measured: no image fits, or nobody was asked.", file=sys.stderr)
        return 1
    settings = {
        "method": method,
        "dataset": options.dataset.resolve().name,
        "ids": options.ids,
        "per_image": options.per_image,
        "limit": options.limit,
        "min_area_px": MIN_AREA_PX,
        **asdict(config),
        "seconds": round(time.monotonic() - started),
    }
    result = report(scores, method, settings)
    table = to_markdown(result["miou_percent"], result["counts"])
    print(table)
    if "refines_with_mask_input" in result:
        print("refines_with_mask_input:", str(result["refines_with_mask_input"]).lower())
    if out_dir:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
        (out_dir / "scores.md").write_text(table)
        assert worst is not None
        worst.save(out_dir)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distillation.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("bundle", help="folder of a bundle, or 'none' for the baselines alone")
    add("dataset", type=Path, help="set, folder of sets, or annotation file")
    add("--images", type=Path, help="where the images lie, if not in images/ beside the file")
    add("--out", type=Path, help="folder for scores.json, scores.md and the worst cases")
    add("--ids", choices=("even", "odd", "all"), default="all", help="which image ids")
    add("--per-image", type=int, default=4, help="objects per image (lowest annotation ids)")
    add("--limit", type=int, help="at most so many images of each set")
    add("--clicks", choices=tuple(CORRECTIVE_CLICKS), default="wrong-pixel")
    add("--mask-input", action="store_true", help="ask again with the earlier logits fed back")
    add("--baselines", action="store_true", help="box, ellipse and GrabCut in the same table")
    add("--baseline-cache", type=Path, help="file that remembers the baselines' scores")
    add("--threads", type=int, help="threads of ONNX Runtime; all processors if not given")
    add("--verbose", action="store_true", help="one line per image")
    return parser


if __name__ == "__main__":
    sys.exit(main())
