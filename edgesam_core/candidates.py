"""Which of the decoder's masks is shown: [M, S/4, S/4] logits -> an order, best first.

Seventh step of a click's path. The decoder always answers with four masks. Mask 0 is meant for
prompts that name one object; masks 1 to 3 are SAM's answers to an ambiguous click (the part, the
whole, ...). EdgeSAM, unlike SAM, distils all four under a single click and offers all four.

The rule:

- One positive click alone (no box, no negative click, no earlier mask) is ambiguous: the best of
  all four by score. Anything more says which object is meant: mask 0.
- A candidate without a pixel is never shown while another has some. For a prompt that should get
  mask 0 the others then stand in, best score first.
- score = stability score x share of the clicks that are honoured (positive ones inside the mask,
  negative ones outside). A mask that misses the only click scores 0, however stable it is.

That is EdgeSAM's rule. Its IoU head is not used, since it was copied from SAM and never trained
with the new decoder. SAM and MobileSAM (`Ranking`) have a trained one, which takes the place of the
stability score, and a mask 0 that was trained on several prompts only: a single click gets one of
the other three.

Source:
    Segment Anything (arXiv 2304.02643), section 3 "Resolving ambiguity" and appendix A "Making the
    model ambiguity-aware" (SAM: three masks for one click, a fourth for several prompts). EdgeSAM's
    demo (four masks, best stability, for any clicks; mask 0 for a box). That only a single positive
    click counts as ambiguous is micro-sam's rule (``prompt_based_segmentation.py``): with a second
    click, jumping between masks would undo what the annotator has just corrected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgesam_core.arrays import LogitsMap, LowResLogits, Scores
from edgesam_core.decode import DecoderOutput, Prompt
from edgesam_core.encode import Embedding
from edgesam_core.geometry import original_to_input

CELL_PX = 4
"""Side of one cell of the low-res logits in pixels of the input frame."""


@dataclass(frozen=True)
class Candidate:
    """One of the M masks with its scores; the logits stay in the decoder's output."""

    index: int
    # 0..M-1
    score: float
    # stability_score (or iou_prediction, see `Ranking`) x share of the clicks honoured, 0..1
    stability_score: float
    iou_prediction: float


@dataclass(frozen=True)
class Ranking:
    """By what rule a network's masks are ordered."""

    trusts_iou_prediction: bool = False
    # score by the decoder's own estimate instead of by stability
    offers_mask_0_for_a_click: bool = True
    # False: only masks 1 to 3 answer a single positive click


def stability_score(low_res_logits: LowResLogits, *, offset: float = 1.0) -> Scores:
    """How little each candidate changes when the mask threshold moves.

    The IoU of the candidate cut at ``+offset`` with itself cut at ``-offset``. 1.0: the edge does
    not depend on the threshold. Near 0.0: the mask is a haze, better not offered.

    The published EdgeSAM counts over the whole square, padding included. Pass only the part that
    is image (`valid_area`): what the decoder imagines on the padding is cut away before anybody
    sees it and says nothing about the mask. On images that fill the square both are the same.

    Args:
        low_res_logits: [..., h, w] float32, decoder output before threshold and up-scaling.
        offset: Distance from the mask threshold (0.0) in logits, not in probability; positive.

    Returns:
        [...] float32 in 0..1; 0.0 where even the looser cut is empty (the published code: NaN).

    Source:
        Segment Anything (arXiv 2304.02643), appendix B, "Filtering".
    """
    # The stricter cut lies inside the looser one: their intersection is inner, their union outer.
    inner = np.count_nonzero(low_res_logits > offset, axis=(-2, -1))
    outer = np.count_nonzero(low_res_logits > -offset, axis=(-2, -1))
    stability: Scores = np.divide(inner, np.maximum(outer, 1), dtype=np.float32)
    return stability


def valid_area(low_res_logits: LowResLogits, embedding: Embedding) -> LowResLogits:
    """The cells that show image, without those that show only padding.

    Args:
        low_res_logits: [..., S/4, S/4].
        embedding: Knows how much of the input is image.

    Returns:
        [..., h, w], a view; a cell that is partly padding stays.
    """
    height, width = (math.ceil(side / CELL_PX) for side in embedding.input_size_hw)
    return low_res_logits[..., :height, :width]


def is_ambiguous(prompt: Prompt) -> bool:
    """Whether several masks are a fair answer: one positive click and nothing else."""
    return (
        prompt.box_xyxy is None
        and prompt.mask_input is None
        and prompt.point_labels.tolist() == [1]
    )


def rank_candidates(
    output: DecoderOutput,
    prompt: Prompt,
    embedding: Embedding,
    ranking: Ranking = Ranking(),
) -> list[Candidate]:
    """All candidates, the one to show first.

    The order is right up to up-scaling: a speck of one cell may vanish at the original size, so a
    caller takes the first whose full mask has a pixel.

    Args:
        output: Of the decoder, for this prompt.
        prompt: In original pixels.
        embedding: That was decoded.
        ranking: The network's rule; EdgeSAM's unless told otherwise.
    """
    visible = valid_area(output.low_res_logits, embedding)  # [M, h, w]
    stability = stability_score(visible)  # [M]
    honoured = share_of_clicks_honoured(visible, prompt, embedding)  # [M]
    # A regression may say a little more than 1 or less than 0.
    trusted = output.iou_prediction.clip(0, 1) if ranking.trusts_iou_prediction else stability
    candidates = [
        Candidate(
            index=index,
            score=float(trusted[index] * honoured[index]),
            stability_score=float(stability[index]),
            iou_prediction=float(output.iou_prediction[index]),
        )
        for index in range(len(visible))
    ]
    has_pixels = [bool((logits > 0).any()) for logits in visible]
    is_offered = [_is_offered(index, prompt, ranking) for index in range(len(visible))]
    return sorted(
        candidates,
        key=lambda c: (has_pixels[c.index], is_offered[c.index], c.score, c.stability_score),
        reverse=True,
    )


def _is_offered(index: int, prompt: Prompt, ranking: Ranking) -> bool:
    """Whether this mask is meant for this kind of prompt."""
    if not is_ambiguous(prompt):
        return index == 0
    return index > 0 or ranking.offers_mask_0_for_a_click


def share_of_clicks_honoured(
    low_res_logits: LowResLogits, prompt: Prompt, embedding: Embedding
) -> Scores:
    """How many of the clicks each candidate obeys.

    Args:
        low_res_logits: [M, h, w], the visible part.
        prompt: Its points, in original pixels.
        embedding: Knows the sizes.

    Returns:
        [M] float32 in 0..1; 1.0 for a prompt without clicks.
    """
    if len(prompt.point_coords) == 0:
        return np.ones(len(low_res_logits), dtype=np.float32)
    points = original_to_input(
        prompt.point_coords, embedding.original_size_hw, embedding.input_size_hw
    )
    inside = np.stack([logits_at(logits, points / CELL_PX) > 0 for logits in low_res_logits])
    share: Scores = (inside == (prompt.point_labels == 1)).mean(axis=1, dtype=np.float32)
    return share


def logits_at(logits: LogitsMap, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Logits between the cells, by the rule that up-scaling uses (bilinear, corner-based).

    Args:
        logits: [h, w].
        points: [N, 2] (x, y) in cells, (0, 0) in the corner of the first cell.

    Returns:
        [N] float32; beyond the outermost centres the nearest one counts.
    """
    height, width = logits.shape
    x, y = np.clip(points[:, 0] - 0.5, 0, width - 1), np.clip(points[:, 1] - 0.5, 0, height - 1)
    x0, y0 = x.astype(np.intp), y.astype(np.intp)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    right, down = x - x0, y - y0
    upper = logits[y0, x0] * (1 - right) + logits[y0, x1] * right
    lower = logits[y1, x0] * (1 - right) + logits[y1, x1] * right
    between: npt.NDArray[np.float32] = (upper * (1 - down) + lower * down).astype(np.float32)
    return between
