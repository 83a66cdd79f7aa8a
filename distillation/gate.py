"""Challenger against incumbent: may the new version serve?

    python -m distillation.gate INCUMBENT RUN

Both bundles are asked as they are served, on the same prompts: boxes, clicks and the annotators'
own on the held-out tasks of ``RUN/snapshot``, and boxes and clicks on drawn scenes that no training
has seen (the replay set; half of them are painted over the project's own images). The verdict is
``RUN/gate.json``, its reason a sentence for the admin, with pictures in ``RUN/gate``. What a bundle
answered is kept image by image, so that the same command goes on where it was stopped.

Read gate_verdict.py's ``judge`` first. The exit status says only whether there is a verdict.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from distillation.command import add_threads, run_command
from distillation.gate_pictures import draw_changes
from distillation.gate_rows import choose, held_out_rows, replay_rows
from distillation.gate_verdict import MARGIN, judge
from distillation.honoured import honoured_prompts
from distillation.mask_edges import masks_on_edges
from distillation.project_set import load_project_set
from distillation.run_folder import write_whole
from edgesam_core.bundle import Bundle
from edgesam_core.segmenter import Segmenter

logger = logging.getLogger(__name__)

PHOTOS = 12
"""Held-out images that scenes are painted with."""


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
    photos = [annotated.read() for annotated in choose(held_out)[:PHOTOS]]
    asked, replayed = [], []
    segmenters = [Segmenter(bundle, threads=threads or None) for bundle in (served, wants)]
    for segmenter in segmenters:
        memory = run / "gate" / f"{segmenter.version}.jsonl"
        asked.append(held_out_rows(segmenter, held_out, memory))
        replayed.append(replay_rows(segmenter, photos, memory.with_suffix(".replay.jsonl")))
    verdict = judge(
        *asked,
        *replayed,
        margin=margin,
        honoured=honoured_prompts(train_set),
        on_edges=masks_on_edges(train_set),
    )
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
