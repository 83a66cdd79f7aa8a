"""Before and after, for the status page: where the challenger changed most, for better or worse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distillation.click_rounds import ask, click_prompt
from distillation.gate_verdict import Row
from distillation.instances import AnnotatedImage
from distillation.metrics import mask_iou
from distillation.prompt_points import PROTOCOLS
from distillation.run_folder import save_picture
from distillation.sheets import Sample, draw_sheet
from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.decode import Prompt
from edgesam_core.segmenter import Segmenter

SHOWN = 4
"""Best and worst changes, so many each."""


def draw_changes(
    segmenters: Sequence[Segmenter],
    images: Sequence[AnnotatedImage],
    rows: Sequence[Sequence[Row]],
    folder: Path,
) -> list[str]:
    """Pictures of the objects whose answer to one click changed most, best ones first.

    Args:
        segmenters: The incumbent, for the left half of a picture, and the challenger.
        images: With the objects that the rows are about.
        rows: Of the incumbent, and of the challenger on the same objects.
        folder: Receives ``0001.png`` and so on.

    Returns:
        Their names, relative to the folder's parent.
    """
    changes = [(b.ious["click"] - a.ious["click"], int(a.key)) for a, b in zip(*rows, strict=True)]
    changes.sort(reverse=True)
    gained = [key for change, key in changes[:SHOWN] if change > 0]
    lost = [key for change, key in changes[::-1][:SHOWN] if change < 0]
    where = {i.annotation_id: image for image in images for i in image.instances}
    names = []
    for number, key in enumerate([*gained, *lost[::-1]], start=1):
        image = where[key].read()
        instance = next(i for i in where[key].instances if i.annotation_id == key)
        samples = [
            _sample(segmenter, image, instance.mask(), word)
            for segmenter, word in zip(segmenters, ("before", "after"), strict=True)
        ]
        sheet = draw_sheet(samples, columns=2)
        assert sheet is not None
        save_picture(folder / f"{number:04d}.png", sheet)
        names.append(f"{folder.name}/{number:04d}.png")
    return names


def _sample(segmenter: Segmenter, image: ImageRGB, truth: Mask, word: str) -> Sample:
    prompt = click_prompt(PROTOCOLS["sam"].first(truth))
    (turn,) = ask(segmenter, segmenter.embed(image), [prompt])
    caption = f"{word}, IoU {mask_iou(turn.mask, truth):.2f}"
    rows, columns = np.nonzero(truth)
    side = int(2.5 * max(float(np.ptp(rows)), float(np.ptp(columns)), 20.0))
    x0 = int(columns.mean()) - side // 2
    y0 = int(rows.mean()) - side // 2
    return Sample(
        _square(image, x0, y0, side),
        Prompt(prompt.point_coords - np.array([x0, y0], np.float32), prompt.point_labels),
        _square(turn.mask, x0, y0, side),
        _square(truth, x0, y0, side),
        caption,
    )


def _square(array: np.ndarray, x0: int, y0: int, side: int) -> np.ndarray:
    """A square window that may reach over the edge, where zeros stand: [side, side, ...]."""
    window = np.zeros((side, side, *array.shape[2:]), array.dtype)
    height, width = array.shape[:2]
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = min(y0 + side, height), min(x0 + side, width)
    window[top - y0 : bottom - y0, left - x0 : right - x0] = array[top:bottom, left:right]
    return window
