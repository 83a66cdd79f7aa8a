"""The granularity prior at a click: proposed boxes of whole objects, and the one that joins it.

Beside a click's path: the third graph of a bundle says of every anchor how likely it is an object
and how its box differs; this file turns that into `Proposals` once per image, and at a click merges
those nearest to it into one box (`merge`). Boxes are in the frame of the S x S input here;
segmenter.py brings them to the original image. The network is nn/granularity.py.

Two merge rules. Both look at the proposals that strictly contain the click, and of these at the
five whose centres are nearest to it:

- ``best``: the official code's. The most confident of the five. (There, boxes of exactly equal
  confidence add up to one outside the image; here the nearest of them is taken.)
- ``mean``: the paper's. The mean of the five, weighted by confidence. (The paper does not say that
  they contain the click. A box beside the click would contradict it as a prompt.)

Source:
    EdgeSAM (arXiv 2312.06660), section 3.3, "Granularity priors", and its published evaluation;
    anchors and deltas as in MMDetection, which the published code builds on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from edgesam_core.arrays import BoxXYXY, check_shape
from edgesam_core.errors import BundleError
from edgesam_core.session import Session, run_graph

FEATURES = ("stage1", "stage2", "stage3")
"""Outputs that the encoder has beside the embedding where a bundle has the third graph."""

OUTPUTS = ("objectness_logits", "deltas")
STRIDES_PX = (8, 16, 32, 64, 128)
RATIOS = (1.0, 0.5, 2.0)
"""Height to width."""

SCALES = tuple(4 * 2 ** (k / 3) for k in range(3))
"""Side of a square anchor in strides."""

ANCHORS_PER_CELL = len(RATIOS) * len(SCALES)
MIN_SCORE = 0.1
"""Objectness from which an anchor's box is a proposal, as in the published evaluation."""

MAX_PER_LEVEL = 2000
"""Proposals of one level at most, those of highest objectness; nothing else thins them out."""

NEAREST = 5
"""How many proposals around a click are looked at."""

_MAX_LOG_RATIO = abs(np.log(16 / 1000))  # a side grows or shrinks by at most 62.5

MergeRule = Literal["best", "mean"]
MERGE_RULES: tuple[MergeRule, ...] = ("best", "mean")
Boxes = Annotated[npt.NDArray[np.float32], "[P, 4] x0, y0, x1, y1 pixels"]


@dataclass(frozen=True, eq=False)
class Proposals:
    """Where objects may be in an image, in the frame of the S x S input."""

    boxes_xyxy: Boxes
    # [P, 4] float32, cut at the input's border
    scores: npt.NDArray[np.float32]
    # [P] objectness, MIN_SCORE to 1; level by level, falling within a level

    @property
    def nbytes(self) -> int:
        """What keeping them costs: 20 bytes each, 163 kB for 8,000."""
        return self.boxes_xyxy.nbytes + self.scores.nbytes


class ProposalNetwork:
    """An open granularity graph; safe to share between threads."""

    def __init__(self, session: Session, *, input_size: int) -> None:
        """Take an open graph (session.py).

        Args:
            session: The encoder's ``stage1`` to ``stage3`` -> ``objectness_logits`` [1, A] and
                ``deltas`` [1, A, 4].
            input_size: S.

        Raises:
            BundleError: The graph's inputs have other names.
        """
        inputs = set(session.inputs)
        if inputs != set(FEATURES):
            raise BundleError(
                f"The granularity graph takes {', '.join(sorted(inputs))}, expected "
                f"{', '.join(FEATURES)}. Export the bundle again."
            )
        self._session = session
        self._input_size = input_size

    def propose(self, features: list[npt.NDArray[np.float32]]) -> Proposals:
        """The proposals for an image.

        Args:
            features: What the encoder has for `FEATURES`, in this order: [1, C, S/8, S/8], then at
                strides 16 and 32.

        Raises:
            BundleError: The graph does not take them, or answers for another number of anchors.
        """
        inputs = dict(zip(FEATURES, features, strict=True))
        objectness_logits, deltas = run_graph(self._session, inputs, OUTPUTS)
        count = len(anchors(self._input_size))
        if objectness_logits.shape != (1, count) or deltas.shape != (1, count, 4):
            raise BundleError(
                f"The granularity graph answered with shape {objectness_logits.shape}, expected "
                f"{count} anchors. Export the bundle again."
            )
        return propose(objectness_logits[0], deltas[0], self._input_size)


def cells_per_side(input_size: int) -> list[int]:
    """Cells of each level along one side, rounded up where S is no multiple of 128."""
    return [-(-input_size // stride) for stride in STRIDES_PX]


@lru_cache(maxsize=4)
def anchors(input_size: int) -> Boxes:
    """All anchors of an input: [A, 4] float32, read-only.

    Level by level, in a level row by row, in a cell ratio by ratio and scale by scale. 196,416 for
    S = 1024. The first is (-12, -12, 20, 20): an anchor may reach over the border.
    """
    levels = []
    for stride, cells in zip(STRIDES_PX, cells_per_side(input_size), strict=True):
        half_sides = [
            (stride * scale / ratio**0.5 / 2, stride * scale * ratio**0.5 / 2)
            for ratio in RATIOS
            for scale in SCALES
        ]
        shapes = np.array([(-w, -h, w, h) for w, h in half_sides]) + stride / 2  # [9, 4]
        y, x = np.mgrid[0:cells, 0:cells] * stride
        corners = np.stack([x, y, x, y], axis=-1)  # [cells, cells, 4]
        levels.append((corners[:, :, None] + shapes).reshape(-1, 4))
    table: Boxes = np.concatenate(levels).astype(np.float32)
    table.setflags(write=False)
    return table


def decode_boxes(anchor_boxes: Boxes, deltas: npt.NDArray[np.float32], input_size: int) -> Boxes:
    """Anchors moved and scaled by their deltas, cut at the input's border.

    Args:
        anchor_boxes: [P, 4].
        deltas: [P, 4]: shift of the centre in sides of the anchor, x and y, then the logarithms of
            the ratios of width and height.
        input_size: S.

    Returns:
        [P, 4] float32 in 0..S; one that lies beyond the border has no area.
    """
    sides = anchor_boxes[:, 2:] - anchor_boxes[:, :2]
    centres = (anchor_boxes[:, :2] + anchor_boxes[:, 2:]) / 2 + deltas[:, :2] * sides
    half = sides * np.exp(np.clip(deltas[:, 2:], -_MAX_LOG_RATIO, _MAX_LOG_RATIO)) / 2
    boxes: Boxes = np.concatenate([centres - half, centres + half], axis=1).astype(np.float32)
    return boxes.clip(0, input_size)


def propose(
    objectness_logits: npt.NDArray[np.float32], deltas: npt.NDArray[np.float32], input_size: int
) -> Proposals:
    """What a network thinks of every anchor, as boxes.

    Args:
        objectness_logits: [A].
        deltas: [A, 4].
        input_size: S.

    Returns:
        Of each level the at most `MAX_PER_LEVEL` boxes whose objectness is above `MIN_SCORE`,
        overlapping ones and all: no suppression. Of those, the ones that reach into the input.

    Raises:
        ValueError: Logits or deltas are not as many as the anchors of this input size.
    """
    all_anchors = anchors(input_size)
    check_shape(objectness_logits, (len(all_anchors),), "objectness_logits")
    check_shape(deltas, (len(all_anchors), 4), "deltas")
    counts = [ANCHORS_PER_CELL * cells**2 for cells in cells_per_side(input_size)]
    kept = []
    start = 0
    for count in counts:
        level = objectness_logits[start : start + count]
        # The threshold as a logit, so that only what passes it needs a logarithm's inverse.
        passing = np.flatnonzero(level > np.log(MIN_SCORE / (1 - MIN_SCORE)))
        order = np.argsort(-level[passing], kind="stable")[:MAX_PER_LEVEL]
        kept.append(start + passing[order])
        start += count
    chosen = np.concatenate(kept)
    scores = 1 / (1 + np.exp(-objectness_logits[chosen]))
    boxes = decode_boxes(all_anchors[chosen], deltas[chosen], input_size)
    has_area = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)  # not beyond the border
    return Proposals(boxes[has_area], scores[has_area].astype(np.float32))


def nearest(proposals: Proposals, x: float, y: float) -> Proposals:
    """The at most five proposals around a point whose centres are nearest to it, nearest first.

    Args:
        proposals: Of the image.
        x: In the input's frame.
        y: In the input's frame; a point on a box's edge is not inside.
    """
    x0, y0, x1, y1 = proposals.boxes_xyxy.T
    around = np.flatnonzero((x0 < x) & (x < x1) & (y0 < y) & (y < y1))
    offset = np.stack([(x0 + x1) / 2 - x, (y0 + y1) / 2 - y])[:, around]
    order = np.argsort(np.square(offset).sum(axis=0), kind="stable")[:NEAREST]
    chosen = around[order]
    return Proposals(proposals.boxes_xyxy[chosen], proposals.scores[chosen])


def merge(proposals: Proposals, x: float, y: float, rule: MergeRule) -> BoxXYXY | None:
    """The box that joins a click.

    Args:
        proposals: Of the image.
        x: In the input's frame.
        y: In the input's frame.
        rule: See the top of this file.

    Returns:
        [4] float32 in the input's frame, around the click; None where no proposal is.
    """
    five = nearest(proposals, x, y)
    if len(five.scores) == 0:
        return None
    if rule == "best":
        best: BoxXYXY = five.boxes_xyxy[np.argmax(five.scores)]
        return best
    mean: BoxXYXY = np.average(five.boxes_xyxy, axis=0, weights=five.scores).astype(np.float32)
    return mean
