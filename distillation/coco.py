"""Data sets with masks, in COCO's and LVIS's form: found, read, and what is wrong with them.

    python -m distillation.coco DATASET [IMAGES]        says what is wrong with a data set

``DATASET`` is an annotation file, a set (a folder with ``annotations.json`` and ``images/``) or a
folder of sets. The JSON is read once (``coco_reader.py``); images and masks are decoded one by one,
when asked for. What is wrong is never an exception halfway: ``check`` finds all of it, ``refuse``
turns it into one sentence before any work is done. Which images and objects are used is decided
elsewhere (``data.py`` trains, ``annotated_images.py`` measures).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from distillation.coco_masks import segmentation_to_mask
from distillation.coco_reader import CocoReader
from distillation.instances import AnnotatedImage, AnnotatedSet, Finding
from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.errors import EdgeSamError, RunError

logger = logging.getLogger(__name__)

NAMED_FINDINGS = 4
"""So many findings stand in the sentence of an error; the command lists all."""


def find_sets(dataset: Path, images_dir: Path | None = None) -> list[tuple[str, Path, Path]]:
    """Every set below a path: (name, annotation file, folder with its images).

    Args:
        dataset: An annotation file, a set's folder, or a folder of sets.
        images_dir: Where the images lie, if not in ``images/`` beside the annotation file.

    Raises:
        RunError: There is none.
    """
    if dataset.is_file():
        files = [dataset]
    else:
        files = sorted([*dataset.glob("annotations.json"), *dataset.glob("*/annotations.json")])
    if not files:
        raise RunError(f"No annotations.json in {dataset} or in the folders in it.")
    if images_dir is not None and len(files) > 1:
        raise RunError(f"{dataset} holds {len(files)} sets: name one of them, or no image folder.")
    return [(_set_name(file), file, images_dir or file.parent / "images") for file in files]


def _set_name(file: Path) -> str:
    return file.parent.resolve().name if file.name == "annotations.json" else file.stem


def load_set(name: str, file: Path, images_dir: Path) -> AnnotatedSet:
    """Read one annotation file; what is wrong with it is among the findings.

    Args:
        name: What the set is called in tables.
        file: COCO or LVIS JSON.
        images_dir: Where the images lie. A name with folders in it is looked for in those folders
            first, then directly in ``images_dir``.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return AnnotatedSet(name, file, (), {}, (Finding(file, "the file is missing"),))
    except (OSError, ValueError) as exc:
        return AnnotatedSet(name, file, (), {}, (Finding(file, f"is not JSON: {exc}"),))
    return CocoReader(name, file, images_dir).read(content)


def decode_image(image: AnnotatedImage) -> tuple[ImageRGB | None, list[Mask], list[Finding]]:
    """The pixels, the masks, and what is wrong with either.

    Returns:
        [H, W, 3] uint8, None if unreadable; a mask [H, W] bool for every object, if nothing is
        wrong; the findings.
    """
    pixels, masks, findings = None, [], []
    try:
        pixels = image.read_pixels()
    except ValueError as exc:
        findings.append(Finding(image.path, str(exc)))
    for instance in image.instances:
        who = f"the mask of annotation {instance.annotation_id}"
        try:
            masks.append(segmentation_to_mask(instance.segmentation, image.original_size_hw))
            if not masks[-1].any():
                findings.append(Finding(image.path, f"{who} is empty"))
        except ValueError as exc:
            findings.append(Finding(image.path, f"{who} {exc}"))
    return pixels, masks, findings


def check(dataset: Path, images_dir: Path | None = None) -> list[Finding]:
    """Everything that is wrong with a data set; every image and mask is decoded once.

    Args:
        dataset: See ``find_sets``.
        images_dir: See ``find_sets``.

    Raises:
        RunError: There is no data set.
    """
    findings: list[Finding] = []
    for where in find_sets(dataset, images_dir):
        annotated = load_set(*where)
        findings += annotated.findings
        for image in annotated.images:
            findings += decode_image(image)[2]
    return findings


def refuse(findings: Sequence[Finding]) -> None:
    """Stop if anything is wrong; warnings are only logged.

    Raises:
        RunError: The first findings by file and reason, and how many more there are.
    """
    for finding in findings:
        if finding.is_warning:
            logger.warning("%s", finding)
    errors = [finding for finding in findings if not finding.is_warning]
    if not errors:
        return
    named = "; ".join(str(finding).rstrip(".") for finding in errors[:NAMED_FINDINGS])
    more = f"; and {len(errors) - NAMED_FINDINGS} more" if len(errors) > NAMED_FINDINGS else ""
    raise RunError(f"The data set cannot be used. {named}{more}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when nothing is wrong (warnings may be)."""
    parser = argparse.ArgumentParser(
        prog="python -m distillation.coco", description="Say what is wrong with a data set."
    )
    parser.add_argument("dataset", type=Path, help="annotation file, set, or folder of sets")
    parser.add_argument("images", type=Path, nargs="?", help="where the images lie")
    options = parser.parse_args(arguments)
    try:
        findings = check(options.dataset, options.images)
    except EdgeSamError as exc:
        print(exc.sentence, file=sys.stderr)
        return 1
    for finding in findings:
        print("warning:" if finding.is_warning else "error:", finding)
    return int(any(not finding.is_warning for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
