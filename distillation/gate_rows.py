"""What one bundle makes of the gate's objects: prompts asked as they are served, answers kept.

On a project's held-out tasks a box, clicks one after the other where they help most, and the
annotators' own prompts; on drawn scenes a box and a click. The answers go to a file image by image,
so that a gate that was killed asks only what is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillation.annotated_images import MIN_AREA_PX
from distillation.click_rounds import ask, box_prompt, click_prompt, play_rounds
from distillation.gate_verdict import Row
from distillation.instances import AnnotatedImage
from distillation.metrics import mask_iou
from distillation.project_set import ProjectSet
from distillation.prompt_points import PROTOCOLS, seed_of
from distillation.replay import GATE_SCENES, replay_scene
from distillation.run_folder import append_line, read_lines
from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.decode import Prompt
from edgesam_core.errors import PromptError
from edgesam_core.geometry import check_points_inside, clip_box
from edgesam_core.segmenter import Segmenter
from edgesam_core.windowed_mask import WindowedMask

ENOUGH_IOU = 0.85
"""An object that is as good as this gets no further click."""

MOST_CLICKS = 10
"""An object that is not there by then counts as having needed so many."""

PER_IMAGE, PER_SCENE = 12, 8
"""Objects that are asked for in a held-out image, and in a scene."""

MOST_TASKS = 150
"""Held-out tasks that are asked about; beyond, more would only cost time."""


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
