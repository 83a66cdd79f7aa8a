"""Trained weights become the bundle that the repository carries, measured and described.

    python -m distillation.release WEIGHTS DATA_DIR models/default --input-size 384

``WEIGHTS`` is a run's ``student.safetensors``. What can be chosen (whether earlier logits are fed
back, whether masks of a click are ranked by the predicted IoU, whether padding is left out) is
chosen on the even image ids of ``DATA_DIR/research_only``; what is reported in card and manifest is
measured on the odd ones, with the bundle as it is served. The manifest's scores and the card's
table of them come from here, the rest of the card is ``recipes/default_card.md``: what that says of
other runs and of baselines is kept true by hand. ``--baseline-cache`` remembers GrabCut, which
takes seconds an object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillation import evaluate
from distillation.candidate_rules import BY_PREDICTION, BY_STABILITY
from distillation.measuring import WITH_LOGITS
from edgesam_core.errors import EdgeSamError, RunError
from edgesam_core.export.write_bundle import write_bundle
from edgesam_core.nn.checkpoint import read_checkpoint

CARD = Path(__file__).parent / "recipes" / "default_card.md"

ORIGIN = (
    "Trained from random weights by this project's distillation/recipes/default_1.yaml to "
    "default_6.yaml on openly licensed photos and composed scenes; see MODEL_CARD.md."
)


@dataclass(frozen=True)
class Choices:
    """What is measured before it is decided."""

    refines_with_mask_input: bool = False
    trusts_iou_prediction: bool = False
    leaves_out_padding: bool = False


MOST_LOST_POINTS = 0.5
"""So much mIoU the faster encode without padding may cost, after any kind of prompt."""


def release(
    weights: Path,
    data: Path,
    out_dir: Path,
    *,
    input_size: int,
    limit: int | None = None,
    baseline_cache: Path | None = None,
) -> None:
    """Choose, measure, describe, write.

    Args:
        weights: Of an EdgeSAM whose prompts are drawn.
        data: Holds ``research_only/``.
        out_dir: Replaced.
        input_size: S in pixels.
        limit: Photos of each set that are asked about, all if None.
        baseline_cache: Where scores of the baselines are kept; None leaves baselines out.
    """
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "default"
        _write(weights, draft, input_size, Choices())
        asked = ["--mask-input", "--rules", "--starts", "box", "click"]
        padded = _measure(draft, data, "even", limit, asked)
        _write(weights, draft, input_size, Choices(leaves_out_padding=True))
        choices = choose(padded, _measure(draft, data, "even", limit, asked))
        _write(weights, draft, input_size, choices)
        asked = ["--mask-input"]
        if baseline_cache is not None:
            asked += ["--baselines", "--baseline-cache", str(baseline_cache)]
        measured = _measure(draft, data, "odd", limit, asked)
    card = CARD.read_text(encoding="utf-8").replace("{input_size}", str(input_size))
    card = card.replace("{scores}", _tables(measured))
    scores = {
        "miou_percent": _served(measured, choices.refines_with_mask_input),
        "objects": measured["counts"]["all"],
        "ids": "odd",
    }
    _write(weights, out_dir, input_size, choices, scores=scores, model_card=card)


def choose(padded: dict[str, Any], unpadded: dict[str, Any]) -> Choices:
    """What the even ids say: of padding first, of all else as it will be served.

    Args:
        padded: ``scores.json`` with mask input and candidate rules.
        unpadded: The same with the padding left out.
    """
    before, after = (_served(m, m["refines_with_mask_input"]) for m in (padded, unpadded))
    leaves_out_padding = all(before[c] - after[c] <= MOST_LOST_POINTS for c in before)
    measured = unpadded if leaves_out_padding else padded
    by_rule = measured["miou_percent_by_candidate_rule"]
    (column,) = (name for name in by_rule[BY_STABILITY] if name.startswith("click"))
    return Choices(
        refines_with_mask_input=measured["refines_with_mask_input"],
        trusts_iou_prediction=by_rule[BY_PREDICTION][column] > by_rule[BY_STABILITY][column],
        leaves_out_padding=leaves_out_padding,
    )


def _served(measured: dict[str, Any], refines_with_mask_input: bool) -> dict[str, float]:
    """Column -> mIoU in percent over all sets, asked as the service asks."""
    method = measured["settings"]["method"] + WITH_LOGITS * refines_with_mask_input
    scores: dict[str, float] = measured["miou_percent"]["all"][method]
    return scores


def _tables(measured: dict[str, Any]) -> str:
    """For the card, whose version is not known before it is written."""
    method = measured["settings"]["method"]
    return evaluate.tables(measured).replace(method, "this model").strip()


def _write(
    weights: Path, out_dir: Path, input_size: int, choices: Choices, **described: Any
) -> None:
    write_bundle(
        read_checkpoint(weights),
        out_dir,
        name="default",
        input_size=input_size,
        draws_prompts=True,
        refines_with_mask_input=choices.refines_with_mask_input,
        trusts_iou_prediction=choices.trusts_iou_prediction,
        leaves_out_padding=choices.leaves_out_padding,
        licence="Apache-2.0",
        origin=ORIGIN,
        overwrite=True,
        **described,
    )


def _measure(
    bundle: Path, data: Path, half: str, limit: int | None, asked: Sequence[str]
) -> dict[str, Any]:
    """``scores.json`` of one run of the evaluation."""
    with tempfile.TemporaryDirectory() as out:
        command = [str(bundle), str(data / "research_only"), "--ids", half, "--out", out, *asked]
        if limit is not None:
            command += ["--limit", str(limit)]
        if evaluate.main(command) != 0:
            raise RunError("The bundle could not be measured. Nothing was released.")
        result: dict[str, Any] = json.loads((Path(out) / "scores.json").read_text())
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when the bundle is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--input-size", type=int, required=True)
    parser.add_argument("--limit", type=int, help="at most so many photos of each set")
    parser.add_argument("--baseline-cache", type=Path, help="measure baselines, and keep them here")
    options = parser.parse_args(arguments)
    try:
        release(
            options.weights,
            options.data,
            options.out_dir,
            input_size=options.input_size,
            limit=options.limit,
            baseline_cache=options.baseline_cache,
        )
    except EdgeSamError as exc:
        print(exc.sentence, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
