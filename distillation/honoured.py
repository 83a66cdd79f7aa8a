"""Do a project's masks lie where its annotators clicked?

An annotator who accepts or mends a suggestion leaves it where the prompt was. Where masks and
prompts do not belong together, regions were mixed up or moved on their way here, and nothing that
was learnt from them may serve (gate_verdict.py).
"""

from __future__ import annotations

import cv2
import numpy as np

from distillation.project_set import ProjectSet
from edgesam_core.arrays import Mask
from edgesam_core.decode import Prompt
from edgesam_core.windowed_mask import WindowedMask

NEAR_PX = 3
"""A click this close to the mask's edge is on either side of it, in pixels of the original."""


def honours(mask: Mask, prompt: Prompt) -> bool:
    """Whether a mask can be what its prompt meant.

    Every positive click is within ``NEAR_PX`` of it, no negative one deep inside, and its box and
    the prompt's have an IoU of a half or more.
    """
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * NEAR_PX + 1,) * 2, np.uint8))
    deep = cv2.erode(mask.astype(np.uint8), np.ones((2 * NEAR_PX + 1,) * 2, np.uint8))
    height, width = mask.shape
    for (x, y), label in zip(prompt.point_coords, prompt.point_labels, strict=True):
        row, column = min(int(y), height - 1), min(int(x), width - 1)
        if not near[row, column] if label == 1 else deep[row, column]:
            return False
    if prompt.box_xyxy is None:
        return True
    own = WindowedMask.from_full(mask).box_xyxy
    if own is None:
        return False
    a, b = np.array(own, np.float64), prompt.box_xyxy.astype(np.float64)
    overlap = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    either = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap
    return bool(overlap >= either / 2)


def honoured_prompts(project: ProjectSet, *, most: int = 200) -> tuple[int, int]:
    """How many masks could be what their stored prompts meant, and how many were looked at.

    Args:
        project: One half of a snapshot.
        most: At most so many regions are looked at.

    Raises:
        RunError: A mask cannot be read.
    """
    told = [
        (instance, project.stored[instance.annotation_id])
        for image in project.images
        for instance in image.instances
        if instance.annotation_id in project.stored
    ]
    order = np.random.default_rng(0).permutation(len(told))[:most]
    looked_at = [(told[i][0].mask(), told[i][1]) for i in order]
    return sum(honours(mask, prompt) for mask, prompt in looked_at), len(looked_at)
