"""Challenger against incumbent: may the new version serve?

    python -m distillation.gate INCUMBENT RUN

Both bundles are asked as they are served, on the same prompts: boxes, clicks and the annotators'
own on the held-out tasks of ``RUN/snapshot``, and boxes and clicks on drawn scenes that no training
has seen (the replay set; half of them are painted over the project's own images). The verdict is
``RUN/gate.json``, its reason a sentence for the admin, with pictures in ``RUN/gate``. What a bundle
answered is kept image by image, so that the same command goes on where it was stopped.

Read ``judge`` first. The exit status says only whether there is a verdict.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distillation.annotated_images import MIN_AREA_PX
from distillation.bootstrap import paired_difference
from distillation.click_rounds import ask, box_prompt, click_prompt, play_rounds
from distillation.command import add_threads, run_command
from distillation.gate_pictures import draw_changes
from distillation.instances import AnnotatedImage
from distillation.metrics import mask_iou
from distillation.project_data import (
    GATE_SCENES,
    ProjectSet,
    honoured_prompts,
    load_project_set,
    replay_scene,
)
from distillation.prompt_points import PROTOCOLS, seed_of
from distillation.run_folder import append_line, read_lines, write_whole
from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.bundle import Bundle
from edgesam_core.decode import Prompt
from edgesam_core.errors import PromptError
from edgesam_core.geometry import check_points_inside, clip_box
from edgesam_core.segmenter import Segmenter
from edgesam_core.windowed_mask import WindowedMask

logger = logging.getLogger(__name__)

COLUMNS = ("box", "click", "click_1", "click_2", "stored")
"""A box, a click, one and two corrections more, and what the annotators themselves did."""

ENOUGH_IOU = 0.85
"""An object that is as good as this gets no further click."""

MOST_CLICKS = 10
"""An object that is not there by then counts as having needed so many."""

PER_IMAGE, PER_SCENE = 12, 8
"""Objects that are asked for in a held-out image, and in a scene."""

MOST_TASKS = 150
"""Held-out tasks that are asked about; beyond, more would only cost time."""

FEWEST_TASKS = 3
"""With fewer held-out tasks nobody can say whether a version is better."""

ENOUGH_OBJECTS = 20
"""Of a label, to be judged on its own."""

FEWEST_HONOURED = 0.6
"""Share of masks that must lie where their stored prompts are; of honest ones nearly all do."""

ENOUGH_PROMPTS = 10
"""Stored prompts, from so many on that share means something."""

MARGIN = 0.02
"""Mean IoU that a label or the replay set may lose."""


@dataclass(frozen=True)
class Row:
    """What one bundle made of one object."""

    key: str
    """Which object, the same for both bundles."""
    group: int
    """Its task, or scene."""
    label: str
    ious: Mapping[str, float]
    """By column."""
    clicks: int | None = None
    """To ``ENOUGH_IOU``; None where it was not counted."""

    @property
    def score(self) -> float:
        """Mean over its prompts."""
        return float(np.mean(list(self.ious.values())))


# --- the verdict ---


def judge(
    incumbent: Sequence[Row],
    challenger: Sequence[Row],
    incumbent_replay: Sequence[Row],
    challenger_replay: Sequence[Row],
    *,
    margin: float = MARGIN,
    honoured: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """Promote only what is better with confidence and has forgotten nothing.

    Args:
        incumbent: Its answers on the held-out tasks.
        challenger: The other's, of the same objects in the same order.
        incumbent_replay: Its answers on the replay set.
        challenger_replay: The other's, in the same order.
        margin: Mean IoU that a label or the replay set may lose.
        honoured: Of the training tasks, see ``honoured_prompts``.

    Returns:
        ``promote``, ``reason`` and the numbers of ``gate.json``.
    """
    held_out = compare(incumbent, challenger)
    labels = compare_labels(incumbent, challenger)
    replay = compare(incumbent_replay, challenger_replay)
    reason = (
        _too_few(held_out)
        or _mixed_up(*honoured)
        or _not_better(held_out)
        or _label_lost(labels, margin)
        or _forgot(replay, margin)
    )
    return {
        "promote": not reason,
        "reason": reason or _better(held_out),
        "held_out": held_out,
        "labels": labels,
        "replay": {
            "objects": replay["objects"],
            "incumbent": replay["incumbent"].get("mean"),
            "challenger": replay["challenger"].get("mean"),
            "difference": replay["difference"],
            "interval": replay["interval"],
        },
        "clicks_to_85": {
            "incumbent": _mean([row.clicks for row in incumbent]),
            "challenger": _mean([row.clicks for row in challenger]),
        },
    }


def _better(held_out: Mapping[str, Any]) -> str:
    before, after = (100 * held_out[who]["mean"] for who in ("incumbent", "challenger"))
    low, high = (100 * end for end in held_out["interval"])
    return (
        f"The new version is better on {held_out['tasks']} tasks that it was not trained on: mean "
        f"IoU {after:.1f} % instead of {before:.1f} % (gain {after - before:.1f}, between "
        f"{low:.1f} and {high:.1f})."
    )


def _too_few(held_out: Mapping[str, Any]) -> str | None:
    tasks = held_out["tasks"]
    if tasks >= FEWEST_TASKS:
        return None
    return (
        f"Nobody can say whether the new version is better: {tasks} of the labelled tasks are held "
        f"out for measuring, at least {FEWEST_TASKS} are needed. Label more tasks."
    )


def _mixed_up(honoured: int, looked_at: int) -> str | None:
    if looked_at < ENOUGH_PROMPTS or honoured >= FEWEST_HONOURED * looked_at:
        return None
    return (
        f"Only {honoured} of {looked_at} masks that were looked at in the training tasks lie where "
        "the annotator clicked for them: regions were mixed up or moved. Check the annotations."
    )


def _not_better(held_out: Mapping[str, Any]) -> str | None:
    low, high = (100 * end for end in held_out["interval"])
    if low > 0:
        return None
    before, after = (100 * held_out[who]["mean"] for who in ("incumbent", "challenger"))
    word = "worse" if high < 0 else "not better with confidence"
    return (
        f"The new version is {word} on the {held_out['tasks']} held-out tasks: mean IoU "
        f"{after:.1f} % instead of {before:.1f} % (difference {after - before:+.1f}, between "
        f"{low:+.1f} and {high:+.1f})."
    )


def _label_lost(labels: Mapping[str, Any], margin: float) -> str | None:
    for name, label in labels.items():
        if label["objects"] < ENOUGH_OBJECTS:
            continue
        if label["challenger"] < label["incumbent"] - margin:
            return (
                f"The new version is better on the whole, but worse for the label {name!r}: mean "
                f"IoU {100 * label['challenger']:.1f} % instead of "
                f"{100 * label['incumbent']:.1f} % on {label['objects']} objects."
            )
    return None


def _forgot(replay: Mapping[str, Any], margin: float) -> str | None:
    if replay["objects"] and replay["difference"] >= -margin:
        return None
    before, after = (100 * replay[who].get("mean", 0.0) for who in ("incumbent", "challenger"))
    return (
        "The new version fits this project's annotations, but no longer finds objects elsewhere: "
        f"mean IoU {after:.1f} % instead of {before:.1f} % on scenes whose masks are known "
        "exactly. Check that the masks lie on their objects."
    )


def compare(incumbent: Sequence[Row], challenger: Sequence[Row]) -> dict[str, Any]:
    """Means by column, and the paired difference of the objects' scores."""
    assert [row.key for row in incumbent] == [row.key for row in challenger]
    groups = [row.group for row in incumbent]
    differences = [b.score - a.score for a, b in zip(incumbent, challenger, strict=True)]
    mean, low, high = paired_difference(differences, groups)
    return {
        "objects": len(incumbent),
        "tasks": len(set(groups)),
        "incumbent": _means(incumbent),
        "challenger": _means(challenger),
        "difference": mean,
        "interval": [low, high],
    }


def compare_labels(incumbent: Sequence[Row], challenger: Sequence[Row]) -> dict[str, Any]:
    """Objects and mean scores of each label."""
    by_label: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for a, b in zip(incumbent, challenger, strict=True):
        by_label[a.label].append((a.score, b.score))
    return {
        name: {
            "objects": len(scores),
            "incumbent": float(np.mean([a for a, _ in scores])),
            "challenger": float(np.mean([b for _, b in scores])),
        }
        for name, scores in sorted(by_label.items())
    }


def _means(rows: Sequence[Row]) -> dict[str, float]:
    means = {
        column: _mean([row.ious[column] for row in rows if column in row.ious])
        for column in COLUMNS
    }
    known = {column: mean for column, mean in means.items() if mean is not None}
    return {**known, "mean": float(np.mean([row.score for row in rows]))} if rows else {}


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


# --- asking ---


def held_out_rows(segmenter: Segmenter, held_out: ProjectSet, memory: Path) -> list[Row]:
    """A bundle's answers on the held-out tasks; what ``memory`` holds is not asked again."""
    chosen = choose(held_out)
    known = _known(memory)
    rows: list[Row] = []
    for annotated in chosen:
        if annotated.image_id not in known:
            found = list(_ask_image(segmenter, annotated, held_out))
            append_line(memory, {"image": annotated.image_id, "rows": [vars(r) for r in found]})
            known[annotated.image_id] = found
        rows += known[annotated.image_id]
    return rows


def choose(held_out: ProjectSet) -> list[AnnotatedImage]:
    """Images and objects to ask about: the largest choice that the limits above allow."""
    images = [
        dataclasses.replace(image, instances=fit[:PER_IMAGE])
        for image in held_out.images
        if (fit := tuple(i for i in image.instances if i.area_px >= MIN_AREA_PX))
    ]
    order = np.random.default_rng(0).permutation(len(images))[:MOST_TASKS]
    return [images[index] for index in np.sort(order)]


def _known(memory: Path) -> dict[int, list[Row]]:
    return {line["image"]: [Row(**row) for row in line["rows"]] for line in read_lines(memory)}


def _ask_image(
    segmenter: Segmenter, annotated: AnnotatedImage, held_out: ProjectSet
) -> Iterator[Row]:
    image = annotated.read()
    truths = [instance.mask() for instance in annotated.instances]
    ids = [instance.annotation_id for instance in annotated.instances]
    embedding = segmenter.embed(image)
    ious: list[dict[str, float]] = [{} for _ in ids]
    boxes = [box_prompt(instance.box_xyxy) for instance in annotated.instances]
    for index, turn in enumerate(ask(segmenter, embedding, boxes)):
        ious[index]["box"] = mask_iou(turn.mask, truths[index])
    clicks = _click_often(segmenter, embedding, truths, ids, ious)
    stored = {
        index: prompt
        for index, annotation_id in enumerate(ids)
        if (prompt := held_out.stored.get(annotation_id)) is not None
        and _lies_on(prompt, annotated.original_size_hw)
    }
    answers = ask(segmenter, embedding, list(stored.values()))
    for index, turn in zip(stored, answers, strict=True):
        ious[index]["stored"] = mask_iou(turn.mask, truths[index])
    for index, annotation_id in enumerate(ids):
        yield Row(
            key=str(annotation_id),
            group=held_out.task_of[annotated.image_id],
            label=held_out.label_of[annotation_id],
            ious=ious[index],
            clicks=clicks[index],
        )


def _click_often(
    segmenter: Segmenter,
    embedding: Any,
    truths: Sequence[Mask],
    ids: Sequence[int],
    ious: Sequence[dict[str, float]],
) -> list[int]:
    """Clicks of one object after the other where they help most; fills columns, counts clicks."""
    protocol = PROTOCOLS["sam"]
    first = ask(segmenter, embedding, [click_prompt(protocol.first(truth)) for truth in truths])
    needed = [MOST_CLICKS] * len(truths)
    rounds = play_rounds(
        segmenter,
        embedding,
        first,
        truths,
        [seed_of(i) for i in ids],
        corrective_click=protocol.correct,
        corrections=MOST_CLICKS - 1,
        feed_logits=segmenter.manifest.refines_with_mask_input,
        enough_iou=ENOUGH_IOU,
    )
    for number, turns in enumerate(rounds):
        for index, turn in enumerate(turns):
            iou = mask_iou(turn.mask, truths[index])
            if number < 3:
                ious[index]["click" if number == 0 else f"click_{number}"] = iou
            if iou >= ENOUGH_IOU:
                needed[index] = min(needed[index], number + 1)
    return needed


def _lies_on(prompt: Prompt, size_hw: tuple[int, int]) -> bool:
    try:
        check_points_inside(prompt.point_coords, size_hw)
        if prompt.box_xyxy is not None:
            clip_box(prompt.box_xyxy, size_hw)
    except PromptError:
        return False
    return True


def replay_rows(segmenter: Segmenter, photos: Sequence[ImageRGB], memory: Path) -> list[Row]:
    """A bundle's answers on drawn scenes; every other one is painted with the project's photos."""
    size = segmenter.manifest.input_size
    known = _known(memory)
    rows: list[Row] = []
    for number in range(GATE_SCENES):
        if number not in known:
            scene = replay_scene(number, size, photos if number % 2 else ())
            found = list(_ask_scene(segmenter, number, scene.image, list(scene.masks[:PER_SCENE])))
            append_line(memory, {"image": number, "rows": [vars(r) for r in found]})
            known[number] = found
        rows += known[number]
    return rows


def _ask_scene(
    segmenter: Segmenter, number: int, image: ImageRGB, truths: Sequence[Mask]
) -> Iterator[Row]:
    embedding = segmenter.embed(image)
    first = PROTOCOLS["sam"].first
    boxes = [np.array(WindowedMask.from_full(t).box_xyxy, np.float32) for t in truths]
    by_box = ask(segmenter, embedding, [box_prompt(box) for box in boxes])
    by_click = ask(segmenter, embedding, [click_prompt(first(truth)) for truth in truths])
    for index, truth in enumerate(truths):
        ious = {
            "box": mask_iou(by_box[index].mask, truth),
            "click": mask_iou(by_click[index].mask, truth),
        }
        yield Row(key=f"{number}/{index}", group=number, label="scene", ious=ious)


# --- the command ---


def gate(incumbent: Path, run: Path, *, margin: float = MARGIN, threads: int = 0) -> dict[str, Any]:
    """Ask both, judge, write ``gate.json``.

    Raises:
        BundleError: One of the bundles is damaged.
        RunError: An image or mask of the snapshot cannot be read.
    """
    out = run / "gate.json"
    served, wants = Bundle.open(incumbent), Bundle.open(run / "challenger")
    if out.exists():
        verdict: dict[str, Any] = json.loads(out.read_text())
        if [verdict["incumbent"], verdict["challenger"]] == [
            served.manifest.version,
            wants.manifest.version,
        ]:
            return verdict
    held_out = load_project_set(run / "snapshot" / "held_out.json", run / "snapshot" / "images")
    (run / "gate").mkdir(exist_ok=True)
    train_set = load_project_set(run / "snapshot" / "train.json", run / "snapshot" / "images")
    photos = [annotated.read() for annotated in choose(held_out)[:12]]
    asked, replayed = [], []
    segmenters = [Segmenter(bundle, threads=threads or None) for bundle in (served, wants)]
    for segmenter in segmenters:
        memory = run / "gate" / f"{segmenter.version}.jsonl"
        asked.append(held_out_rows(segmenter, held_out, memory))
        replayed.append(replay_rows(segmenter, photos, memory.with_suffix(".replay.jsonl")))
    verdict = judge(*asked, *replayed, margin=margin, honoured=honoured_prompts(train_set))
    verdict = {
        "promote": verdict.pop("promote"),
        "reason": verdict.pop("reason"),
        "incumbent": served.manifest.version,
        "challenger": wants.manifest.version,
        **verdict,
        "pictures": draw_changes(segmenters, choose(held_out), asked, run / "gate"),
    }
    write_whole(out, json.dumps(_finite(verdict), indent=1).encode())
    return verdict


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> int:
    """The command line; 0 when there is a verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("incumbent", type=Path, help="bundle that serves")
    parser.add_argument("run", type=Path, help="holds snapshot/ and challenger/")
    parser.add_argument("--margin", type=float, default=MARGIN, help="mean IoU that may be lost")
    add_threads(parser)
    args = parser.parse_args()

    def decide() -> None:
        verdict = gate(args.incumbent, args.run, margin=args.margin, threads=args.threads)
        logger.info("%s: %s", "promote" if verdict["promote"] else "keep", verdict["reason"])

    return run_command(decide, threads=args.threads)


if __name__ == "__main__":
    sys.exit(main())
