"""An embedding and prompts become logits: the fast half, done at every click.

Sixth step of a click's path: embedding + B prompts -> [M, S/4, S/4] logits and [M] scores each.
Prompts arrive in pixels of the original image and leave for the graph as tokens in the frame of its
input. Which of the M candidates to show is candidates.py's part.

Two kinds of graph are served, told apart by the names of their inputs:

- ours: any number of prompts of equal length at once, optional mask input;
- the official ``edge_sam*_decoder.onnx``: one prompt at a time, no mask input, and ``scores``
  that in the published files are stability scores over the padded square.

Neither adds the padding token itself, so it is added here for both.

Source:
    Segment Anything (arXiv 2304.02643), appendix A, "Prompt encoder"; the padding token is in its
    code only (``PromptEncoder._embed_points``), and so in EdgeSAM's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgesam_core.arrays import (
    BoxXYXY,
    LogitsMap,
    LowResLogits,
    PointCoords,
    PointLabels,
    Scores,
    check_shape,
)
from edgesam_core.encode import Embedding
from edgesam_core.errors import BundleError, EdgeSamError, PromptError
from edgesam_core.geometry import check_points_inside, clip_box, original_to_input
from edgesam_core.session import Session, run_graph

PADDING, TOP_LEFT, BOTTOM_RIGHT = -1.0, 2.0, 3.0
"""Labels of tokens that are no clicks (a click is 1 positive or 0 negative)."""

MAX_PROMPTS_PER_CALL = 2
"""At S = 1024 each further one costs 35 MB, and four were only a little faster than two."""

_OUR_INPUTS = {
    "image_embeddings",
    "point_coords",
    "point_labels",
    "mask_input",
    "has_mask_input",
}
_OFFICIAL_INPUTS = {"image_embeddings", "point_coords", "point_labels"}


@dataclass(frozen=True, eq=False)
class Prompt:
    """Points, box and mask input for one object, in pixels of the original image.

    Raises:
        ValueError: Shapes that do not fit each other, or a label other than 0 and 1.
        PromptError: Neither a point nor a box.
    """

    point_coords: PointCoords = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    # [N, 2] float32, (x, y)
    point_labels: PointLabels = field(default_factory=lambda: np.zeros(0, np.float32))
    # [N] float32: 1 positive, 0 negative
    box_xyxy: BoxXYXY | None = None
    # [4] float32
    mask_input: LogitsMap | None = None
    # [S/4, S/4] float32, earlier low-res logits of the same object

    def __post_init__(self) -> None:
        """Refuse what no graph could answer."""
        check_shape(self.point_coords, (None, 2), "point_coords")
        check_shape(self.point_labels, (len(self.point_coords),), "point_labels")
        if not np.isin(self.point_labels, (0, 1)).all():
            raise ValueError(f"point_labels: expected 0 and 1 only, got {self.point_labels}")
        if self.box_xyxy is not None:
            check_shape(self.box_xyxy, (4,), "box_xyxy")
        if len(self.point_coords) == 0 and self.box_xyxy is None:
            raise PromptError("There is neither a click nor a rectangle. Give at least one.")

    @classmethod
    def from_clicks(
        cls,
        clicks: Sequence[tuple[float, float, int]] = (),
        *,
        box_xyxy: Sequence[float] | None = None,
        mask_input: LogitsMap | None = None,
    ) -> Prompt:
        """A prompt from plain numbers.

        Args:
            clicks: (x, y, label) in original pixels; label 1 positive, 0 negative.
            box_xyxy: x0, y0, x1, y1 in original pixels.
            mask_input: [S/4, S/4] earlier low-res logits.

        Raises:
            PromptError, ValueError: As for `Prompt` itself.
        """
        table = np.array(clicks, dtype=np.float32).reshape(-1, 3)
        box = None if box_xyxy is None else np.array(box_xyxy, dtype=np.float32)
        return cls(table[:, :2], table[:, 2], box, mask_input)


@dataclass(frozen=True, eq=False)
class DecoderOutput:
    """All candidates for one prompt."""

    low_res_logits: LowResLogits
    # [M, S/4, S/4] float32 before the threshold 0
    iou_prediction: Scores
    # [M] float32, the decoder's own estimate (an official graph: whatever its `scores` hold)


class Decoder:
    """An open decoder graph; safe to share between threads."""

    def __init__(self, session: Session) -> None:
        """Take an open graph (session.py) and see which kind it is.

        Raises:
            BundleError: Neither our decoder nor the official one.
        """
        inputs = set(session.inputs)
        if inputs not in (_OUR_INPUTS, _OFFICIAL_INPUTS):
            raise BundleError(
                f"The decoder takes {', '.join(sorted(inputs))}: neither our export nor the "
                "official one. Export or fetch the bundle again."
            )
        self._session = session
        self.takes_mask_input = inputs == _OUR_INPUTS

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[DecoderOutput]:
        """All candidates for every prompt, in the order of the prompts.

        Prompts of equal length go through the graph together: padding them to one length would
        change their answers, since attention sees every token.

        Args:
            embedding: Of the image that the prompts lie on.
            prompts: Any number, with any number of points each.

        Raises:
            PromptError: A click or box outside the image, or a mask input that this graph or this
                size cannot take.
            BundleError: The graph takes or answers something else than the manifest says.
            EdgeSamError: It answers with NaN or infinity.
        """
        tokens = [prompt_to_tokens(prompt, embedding) for prompt in prompts]
        batches: dict[int, list[int]] = defaultdict(list)
        for index, (_, labels) in enumerate(tokens):
            batches[len(labels)].append(index)
        outputs: dict[int, DecoderOutput] = {}
        size = MAX_PROMPTS_PER_CALL if self.takes_mask_input else 1
        for indices in batches.values():
            for start in range(0, len(indices), size):
                chunk = indices[start : start + size]
                coords = np.stack([tokens[i][0] for i in chunk])  # [B, N, 2]
                labels = np.stack([tokens[i][1] for i in chunk])  # [B, N]
                mask_inputs = [prompts[i].mask_input for i in chunk]
                low_res_logits, scores = self._run(embedding, coords, labels, mask_inputs)
                _check_answer(low_res_logits, scores, len(chunk), embedding.input_size // 4)
                for row, i in enumerate(chunk):
                    outputs[i] = DecoderOutput(low_res_logits[row], scores[row])
        return [outputs[i] for i in range(len(prompts))]

    def _run(
        self,
        embedding: Embedding,
        coords: PointCoords,
        labels: PointLabels,
        mask_inputs: Sequence[LogitsMap | None],
    ) -> tuple[LowResLogits, Scores]:
        """One call of the graph: [B, M, S/4, S/4] logits and [B, M] scores."""
        inputs = {
            "image_embeddings": embedding.image_embedding,
            "point_coords": coords,
            "point_labels": labels,
        }
        if not self.takes_mask_input:
            if any(mask is not None for mask in mask_inputs):
                raise PromptError("This model cannot refine an earlier mask. Send clicks only.")
            scores, low_res_logits = run_graph(self._session, inputs, ["scores", "masks"])
            return low_res_logits, np.nan_to_num(scores)  # 0/0 for an empty mask
        side = embedding.input_size // 4
        stacked = np.zeros((len(mask_inputs), 1, side, side), dtype=np.float32)
        for row, mask_input in enumerate(mask_inputs):
            if mask_input is not None:
                if mask_input.shape != (side, side) or not np.isfinite(mask_input).all():
                    raise PromptError(
                        f"The mask input has shape {mask_input.shape} or holds no numbers, "
                        f"expected {side} x {side} finite logits. Send the clicks without it."
                    )
                stacked[row, 0] = mask_input
        has_mask = np.array([mask is not None for mask in mask_inputs], dtype=np.float32)
        inputs |= {"mask_input": stacked, "has_mask_input": has_mask}
        names = ["low_res_logits", "iou_predictions"]
        low_res_logits, iou_predictions = run_graph(self._session, inputs, names)
        return low_res_logits, iou_predictions


def _check_answer(low_res_logits: LowResLogits, scores: Scores, prompts: int, side: int) -> None:
    masks = scores.shape[-1] if scores.ndim == 2 else 0
    if masks == 0 or low_res_logits.shape != (prompts, masks, side, side) or len(scores) != prompts:
        raise BundleError(
            f"The decoder answered {prompts} prompts with logits of shape {low_res_logits.shape} "
            f"and scores of shape {scores.shape}. Export or fetch the bundle again."
        )
    if not (np.isfinite(low_res_logits).all() and np.isfinite(scores).all()):
        raise EdgeSamError("The model answered with no numbers. Try another model.")


def prompt_to_tokens(prompt: Prompt, embedding: Embedding) -> tuple[PointCoords, PointLabels]:
    """A prompt as the points and labels that the graph takes.

    Clicks first, then either the two corners of the box or, without a box, one padding token: SAM
    was trained so, and leaving the token out moves logits by up to 5.

    Args:
        prompt: In original pixels.
        embedding: Of the image that it lies on.

    Returns:
        [N, 2] float32 in the input frame, before the half pixel that the graph adds, and [N]
        float32 labels from -1 to 3.

    Raises:
        PromptError: A click or the whole box lies outside the image.
    """
    size = embedding.original_size_hw
    check_points_inside(prompt.point_coords, size)
    coords = original_to_input(prompt.point_coords, size, embedding.input_size_hw)
    if prompt.box_xyxy is None:
        extra: PointCoords = np.zeros((1, 2), dtype=np.float32)
        extra_labels = [PADDING]
    else:
        corners = clip_box(prompt.box_xyxy, size).reshape(2, 2)
        extra = original_to_input(corners, size, embedding.input_size_hw)
        extra_labels = [TOP_LEFT, BOTTOM_RIGHT]
    labels = np.concatenate([prompt.point_labels, extra_labels]).astype(np.float32)
    return np.concatenate([coords, extra]), labels
