"""How good the masks are: the bundle that is served, beside what has learned nothing.

    python -m distillation.evaluate BUNDLE DATASET [IMAGES] [--ids odd] [--baselines] [--out DIR]

Every object is asked for by its box, by a click in its middle and by a click anywhere on it, then
gets up to two corrective clicks after each (``measuring.py``). ``DATASET`` is a COCO or LVIS file
whose images lie in ``IMAGES``, a set (``annotations.json`` and ``images/``), or a folder of sets.
Choose between runs with ``--ids even``, report ``--ids odd``. Every object of a data set, as in the
paper: ``--per-image 0 --min-area 0``.

    --protocol paper sam   both rules for finding clicks (``prompt_points.py``)
    --mask-input           everything again with the earlier logits as mask input, which decides
                           whether the bundle's manifest may say ``refines_with_mask_input``
    --noc                  clicks needed for 85 and 90 % IoU, at most 20; takes a few times longer
    --boxes FILE           mask AP from a detector's boxes (``coco_ap.py``), one set only
    --rules                which of the four masks one click should be answered with

With ``--out``: scores.json (settings, means, every single score), scores.md, two plots and the
worst cases as picture sheets.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distillation.annotated_images import MIN_AREA_PX, choose_images, images_of_half
from distillation.baseline_scores import BaselineScores
from distillation.click_rounds import Answerer
from distillation.coco import decode_image, find_sets, load_set, refuse
from distillation.coco_ap import ap_to_markdown, load_detections, mask_ap
from distillation.instances import AnnotatedSet
from distillation.measuring import BY_RULE, WITH_LOGITS, MeasuringConfig, score_images
from distillation.metrics import (
    COLUMNS,
    STARTS,
    Score,
    by_coco_size,
    by_share,
    clicks_needed,
    clicks_to_markdown,
    instance_counts,
    mean_iou_after_clicks,
    mean_ious,
    mean_ious_by_set,
    refines_with_mask_input,
    to_markdown,
)
from distillation.plots import save_plots
from distillation.prompt_points import PROTOCOLS
from distillation.run_folder import make_folder, write_whole
from distillation.worst_cases import WorstCases
from edgesam_core.bundle import Bundle
from edgesam_core.errors import EdgeSamError, RunError
from edgesam_core.segmenter import Segmenter

COUNTED_IOUS = (85, 90)
"""Per cent, for which clicks are counted."""


def report(scores: Sequence[Score], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, ready for JSON: settings, means, and every single score."""
    plain = [score for score in scores if score.column in COLUMNS]
    result: dict[str, Any] = {
        "settings": settings,
        "counts": instance_counts(scores),
        "miou_percent": mean_ious_by_set(plain),
        "miou_percent_by_coco_size": _by_size(by_coco_size(plain)),
        "miou_percent_by_share_of_image": _by_size(by_share(plain)),
    }
    means = mean_ious(plain)
    pairs = [(row, means.get(name + WITH_LOGITS)) for name, row in means.items()]
    decisive = [(without, fed) for without, fed in pairs if fed is not None]
    if decisive:
        result["refines_with_mask_input"] = all(refines_with_mask_input(*two) for two in decisive)
    if after_clicks := mean_iou_after_clicks(scores):
        result["miou_percent_after_clicks"] = after_clicks
        result["clicks_needed"] = {
            str(percent): clicks_needed(scores, percent / 100) for percent in COUNTED_IOUS
        }
    by_rule = mean_ious(score for score in scores if score.column.endswith(BY_RULE))
    if by_rule:
        result["miou_percent_by_candidate_rule"] = by_rule
    result["scores"] = [asdict(score) for score in scores]
    return result


def _by_size(groups: dict[str, list[Score]]) -> dict[str, Any]:
    return {
        name: {"objects": instance_counts(group)["all"], "miou_percent": mean_ious(group)}
        for name, group in groups.items()
    }


def tables(result: dict[str, Any]) -> str:
    """The measured tables as Markdown: a row for every method."""
    parts = [to_markdown(result["miou_percent"], result["counts"])]
    if "clicks_needed" in result:
        parts.append(clicks_to_markdown(result["clicks_needed"]))
    if "mask_ap_percent" in result:
        parts.append(ap_to_markdown(result["mask_ap_percent"], result["settings"]["method"]))
    if "miou_percent_by_candidate_rule" in result:
        rows = result["miou_percent_by_candidate_rule"]
        columns = list(next(iter(rows.values())))
        lines = [f"| mask chosen by | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
        lines += [
            f"| {rule} | {' | '.join(f'{row[column]:.1f}' for column in columns)} |"
            for rule, row in rows.items()
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when everything was measured."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING)
    worst = WorstCases() if options.out else None
    try:
        if worst is not None:  # before hours are spent on what could not be kept
            make_folder(options.out)
        result, scores = _measure(options, worst)
        table = tables(result)
        print(table)
        if "refines_with_mask_input" in result:
            print("refines_with_mask_input:", str(result["refines_with_mask_input"]).lower())
        if worst is not None:
            write_whole(options.out / "scores.json", _as_json(result).encode())
            write_whole(options.out / "scores.md", table.encode())
            save_plots(scores, options.out)
            worst.save(options.out)
    except EdgeSamError as exc:
        print(exc.sentence, file=sys.stderr)
        return 1
    return 0


def _measure(
    options: argparse.Namespace, worst: WorstCases | None
) -> tuple[dict[str, Any], list[Score]]:
    """Everything that the command line asks for; what cannot be used is refused before."""
    started = time.monotonic()
    config = MeasuringConfig(
        starts=tuple(options.starts),
        protocols=tuple(options.protocol),
        mask_input=options.mask_input,
        count_clicks=options.noc,
        candidate_rules=options.rules,
    )
    answerer, method = None, "none"
    if options.bundle != "none":
        bundle = Bundle.open(Path(options.bundle))
        answerer = Segmenter(bundle, threads=options.threads)
        method = f"{bundle.manifest.name} {bundle.manifest.version}"
    choice = {
        "half": options.ids,
        "per_image": options.per_image or None,
        "limit": options.limit,
        "min_area_px": options.min_area,
    }
    sets = [load_set(*where) for where in find_sets(options.dataset, options.images)]
    refuse([finding for annotated in sets for finding in annotated.findings])
    images = [image for annotated in sets for image in choose_images(annotated, **choice)]
    refuse([finding for image in images for finding in decode_image(image)[2]])
    ap = _measure_ap(options, sets, answerer) if options.boxes else None
    baselines = BaselineScores(options.baseline_cache) if options.baselines else None
    scores = score_images(
        answerer, images, method=method, config=config, baselines=baselines, worst=worst
    )
    if not scores:
        raise RunError("Nothing was measured: no image fits, or nobody was asked.")
    settings = {
        "method": method,
        "dataset": options.dataset.resolve().name,
        "ids": options.ids,
        **{key: value for key, value in choice.items() if key != "half"},
        **asdict(config),
        "seconds": round(time.monotonic() - started),
    }
    result = report(scores, settings)
    if ap is not None:
        result["mask_ap_percent"] = ap
    return result, scores


def _measure_ap(
    options: argparse.Namespace, sets: Sequence[AnnotatedSet], answerer: Answerer | None
) -> dict[str, float]:
    if len(sets) != 1 or answerer is None:
        raise RunError("A detector's boxes are of one data set: name that, and a bundle.")
    (annotated,) = sets
    detections = load_detections(options.boxes, annotated)
    images = list(images_of_half(annotated, half=options.ids, limit=options.limit))
    refuse([finding for image in images for finding in decode_image(image)[2]])
    return mask_ap(answerer, annotated, images, detections)


def _as_json(result: dict[str, Any]) -> str:
    """Indented, but with each of the many scores on a line of its own; NaN is null."""
    rest = {key: value for key, value in result.items() if key != "scores"}
    if "mask_ap_percent" in rest:
        ap = rest["mask_ap_percent"]
        rest["mask_ap_percent"] = {k: None if math.isnan(v) else v for k, v in ap.items()}
    lines = ",\n  ".join(json.dumps(score) for score in result["scores"])
    return f'{json.dumps(rest, indent=1)[:-2]},\n "scores": [\n  {lines}\n ]\n}}\n'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distillation.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("bundle", help="folder of a bundle, or 'none' for the baselines alone")
    add("dataset", type=Path, help="COCO or LVIS file, set, or folder of sets")
    add("images", type=Path, nargs="?", help="where the images lie, if not in images/ beside it")
    add("--out", type=Path, help="folder for scores.json, scores.md, plots and the worst cases")
    add("--ids", choices=("even", "odd", "all"), default="all", help="which image ids")
    add("--per-image", type=int, default=4, help="objects per image (lowest ids first); 0: all")
    add("--min-area", type=int, default=MIN_AREA_PX, help="smaller objects are left out, in px")
    add("--limit", type=int, help="at most so many images of each set")
    add("--starts", nargs="+", choices=STARTS, default=STARTS, help="first prompts")
    add("--protocol", nargs="+", choices=tuple(PROTOCOLS), default=("paper",), help="whose clicks")
    add("--mask-input", action="store_true", help="ask again with the earlier logits fed back")
    add("--noc", action="store_true", help="count clicks until 85 and 90 %% IoU")
    add("--rules", action="store_true", help="compare rules for choosing one of the four masks")
    add("--boxes", type=Path, help="a detector's boxes (COCO result format), for mask AP")
    add("--baselines", action="store_true", help="box, ellipse and GrabCut in the same table")
    add("--baseline-cache", type=Path, help="file that remembers the baselines' scores")
    add("--threads", type=int, help="threads of ONNX Runtime; all processors if not given")
    add("--verbose", action="store_true", help="one line per image")
    return parser


if __name__ == "__main__":
    sys.exit(main())
