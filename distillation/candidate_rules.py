"""Which of the four masks one click should be answered with: IoU by rule, on the same answers.

The service follows ``edgesam_core/candidates.py``; here its rule stands beside others that could
replace it, and beside the best that any rule could reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distillation.click_rounds import MIN_REGION_PX
from distillation.metrics import mask_iou
from edgesam_core.arrays import LogitsMap, Mask
from edgesam_core.candidates import share_of_clicks_honoured, stability_score, valid_area
from edgesam_core.clean import remove_specks
from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.segmenter import Segmenter
from edgesam_core.upscale import upscale

Floats = npt.NDArray[Any]

BY_STABILITY, BY_PREDICTION = "stability x click honoured", "IoU prediction x click honoured"
"""The two rules that the service knows (edgesam_core/candidates.py)."""

BEST_OF_FOUR = "best of four"
"""Chosen by the annotated mask: what no rule can beat."""


def ious_by_rule(
    segmenter: Segmenter, embedding: Embedding, prompts: Sequence[Prompt], truths: Sequence[Mask]
) -> Iterator[dict[str, float]]:
    """For every object, the IoU of the mask that each rule picks.

    Args:
        segmenter: Who is asked.
        embedding: Of the image, made by it.
        prompts: One click per object.
        truths: One annotated mask per object, [H, W] bool.
    """
    outputs = segmenter.decode(embedding, prompts)
    served = segmenter.suggest(embedding, prompts, outputs)
    for prompt, output, shown, truth in zip(prompts, outputs, served, truths, strict=True):
        masks = [_full_mask(logits, embedding) for logits in output.low_res_logits]
        ious = np.array([mask_iou(mask, truth) for mask in masks])  # [M]
        visible = valid_area(output.low_res_logits, embedding)
        stability = stability_score(visible)
        honoured = share_of_clicks_honoured(visible, prompt, embedding)
        predicted = output.iou_prediction
        places = np.arange(len(masks))
        ranks: dict[str, Floats] = {
            "as served": places == shown.candidate_index,
            BY_STABILITY: stability * honoured,
            "stability": stability,
            BY_PREDICTION: predicted * honoured,
            "IoU prediction": predicted,
            "stability x IoU prediction x click honoured": stability * predicted * honoured,
            "always mask 0": -places,
            BEST_OF_FOUR: ious,
        }
        # An empty mask is shown only where all are.
        is_empty = np.array([not mask.any() for mask in masks])
        yield {
            rule: float(ious[np.argmax(np.where(is_empty, -np.inf, rank))])
            for rule, rank in ranks.items()
        }


def _full_mask(low_res_logits: LogitsMap, embedding: Embedding) -> Mask:
    mask = upscale(
        low_res_logits,
        input_size=embedding.input_size,
        input_size_hw=embedding.input_size_hw,
        original_size_hw=embedding.original_size_hw,
    )
    return remove_specks(mask, min_area_px=MIN_REGION_PX).full()
