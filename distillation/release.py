"""Trained weights and their measured scores become the bundle that the repository carries.

    python -m distillation.release WEIGHTS SCORES BASELINES CARD models/default --input-size 256

``WEIGHTS`` is a run's ``student.safetensors``; ``SCORES`` and ``BASELINES`` are two ``scores.json``
of ``distillation.evaluate`` on a bundle of the same weights: over everything, and beside GrabCut.
The tables in the card and the scores in the manifest are copied from there, never typed; the card's
text is ``distillation/recipes/default_card.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillation.metrics import to_markdown
from edgesam_core.export.write_bundle import write_bundle
from edgesam_core.nn.checkpoint import read_checkpoint

ORIGIN = (
    "Trained from random weights by this project's distillation/recipes/default.yaml on openly "
    "licensed photos and composed scenes; see MODEL_CARD.md."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("baselines", type=Path)
    parser.add_argument("card", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--input-size", type=int, required=True)
    options = parser.parse_args(arguments)
    measured = json.loads(options.scores.read_text())
    method = measured["settings"]["method"]
    card = (
        options.card.read_text(encoding="utf-8")
        .replace("{input_size}", str(options.input_size))
        .replace("{scores}", _table(measured))
        .replace("{baselines}", _table(json.loads(options.baselines.read_text())))
    )
    write_bundle(
        read_checkpoint(options.weights),
        options.out_dir,
        name="default",
        input_size=options.input_size,
        draws_prompts=True,
        refines_with_mask_input=measured.get("refines_with_mask_input", False),
        licence="Apache-2.0",
        origin=ORIGIN,
        scores={
            "miou_percent": measured["miou_percent"]["all"][method],
            "objects": measured["counts"]["all"],
            "ids": measured["settings"]["ids"],
        },
        model_card=card,
        overwrite=True,
    )


def _table(measured: dict[str, Any]) -> str:
    """The measured table, with the bundle's name and version as "this model"."""
    table = to_markdown(measured["miou_percent"], measured["counts"])
    return table.replace(measured["settings"]["method"], "this model").strip()


if __name__ == "__main__":
    main()
