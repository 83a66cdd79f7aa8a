"""An annotation to what it cost: per region how it came about, and what is to be suggested again.

What a suggestion leaves in an annotation is ``meta.edgesam`` and ``origin`` (results.py). A region
without them was drawn by hand, and is counted as such: that, too, tells whether the model saves
work. So is a copied region, which carries the story of the one that it was copied from. What is no
object (a click that was left over, a smart tool's box where objects are masks) is not counted.

Untouched means: of brush, bitmask and rectangle that Label Studio still says so
(``origin: "prediction"``), of polygons, for which it does not know, that the shape is the suggested
one. Nothing here fetches, runs a model or takes long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from backend.effort_rows import AnnotationEffort, RegionEffort
from backend.label_config import LabelConfig
from backend.regions import Region, region_mask, regions_of
from backend.results import mask_hash, outline_hash
from backend.task_pictures import image_uri
from edgesam_core.errors import EdgeSamError
from edgesam_core.windowed_mask import WindowedMask

_SUGGESTED_SHAPES = ("brush", "bitmask", "polygon", "rectangle")
_MOST_LABEL_CHARS = 100
_MOST_PROMPTS = 1000


@dataclass(frozen=True, eq=False)
class Accepted:
    """A suggestion that was changed before it was submitted, and where it can be made again."""

    place: int
    # of its region among those of the annotation
    version: str
    shape: str
    # brush, bitmask, polygon or rectangle
    prompt: Mapping[str, Any]
    # as results.py keeps it: points, labels, box, perhaps a proposed_box
    shape_hash: object
    # of the suggested shape
    submitted: WindowedMask
    uri: str
    task_id: int | None


def count_annotation(
    annotation: Mapping[str, Any],
    task: Mapping[str, Any],
    config: LabelConfig | None,
    *,
    max_pixels: int,
) -> tuple[AnnotationEffort, list[Accepted]]:
    """What an annotation cost.

    Args:
        annotation: As Label Studio's webhooks and API have it, ``id`` a number.
        task: Its task.
        config: The project's labelling config; None where it cannot be read.
        max_pixels: Width x height of the largest region that is looked at.

    Returns:
        The effort, and the suggestions that must be made again to know how much was changed. What
        was not changed has its IoU already, 1. A skipped annotation has no regions.
    """
    task_id = task.get("id")
    effort = AnnotationEffort(
        annotation=annotation["id"],
        task=task_id if type(task_id) is int else None,
        created_at=str(annotation.get("created_at") or "")[:40],
        updated_at=str(annotation.get("updated_at") or "")[:40],
    )
    if annotation.get("was_cancelled"):
        return effort, []
    regions: list[RegionEffort] = []
    changed: list[Accepted] = []
    seen: set[str] = set()
    for region in regions_of(annotation.get("result")):
        if region.shape == "keypoint":
            continue
        if config is not None and config.is_question(region.shape, region.from_name):
            continue
        counted, mask = _count(region, seen, max_pixels)
        if mask is not None and counted.iou is None and config is not None:
            accepted = _accepted(region, mask, len(regions), task, config)
            changed += [] if accepted is None else [accepted]
        regions.append(counted)
    return replace(effort, regions=tuple(regions)), changed


def _count(
    region: Region, seen: set[str], max_pixels: int
) -> tuple[RegionEffort, WindowedMask | None]:
    """One region, and its mask where a model had a part in it."""
    label = region.label[:_MOST_LABEL_CHARS]
    story = region.story or {}
    version, prompt = story.get("version"), story.get("prompt")
    if (
        not isinstance(version, str)
        or not isinstance(prompt, dict)
        or region.shape not in _SUGGESTED_SHAPES
    ):
        return RegionEffort(label), None
    name = json.dumps([version, prompt, region.shape, region.item_index], sort_keys=True)
    if name in seen:
        return RegionEffort(label), None
    seen.add(name)
    mask = _mask(region, max_pixels)
    is_same = mask is not None and _hash(region, mask) == story.get("shape_hash")
    has_origin = region.origin == "prediction"
    return RegionEffort(
        label=label,
        version=version[:_MOST_LABEL_CHARS],
        prompts=_prompts(prompt),
        untouched=is_same if region.shape == "polygon" else has_origin,
        iou=1.0 if is_same else None,
    ), mask


def _prompts(prompt: Mapping[str, Any]) -> int:
    """Clicks and boxes that somebody drew; a proposed box is none."""
    points = prompt.get("points")
    clicks = len(points) if isinstance(points, list) else 0
    return min(clicks + (prompt.get("box") is not None), _MOST_PROMPTS)


def _mask(region: Region, max_pixels: int) -> WindowedMask | None:
    """The pixels of a region; None where it has none, or does not say of how large an image."""
    height, width = (region.result.get(f"original_{side}") for side in ("height", "width"))
    if type(height) is not int or type(width) is not int:
        return None
    if min(height, width) < 1 or height * width > max_pixels:
        return None
    try:
        return WindowedMask.from_full(region_mask(region, (height, width)))
    except EdgeSamError:
        return None


def _hash(region: Region, mask: WindowedMask) -> str:
    """What results.py would call this shape."""
    has_pixels = region.shape in ("brush", "bitmask")
    return mask_hash(mask) if has_pixels else outline_hash(region.result["value"])


def _accepted(
    region: Region,
    mask: WindowedMask,
    place: int,
    task: Mapping[str, Any],
    config: LabelConfig,
) -> Accepted | None:
    """What is needed to suggest a region again; None where its task has no such picture."""
    story, task_id = region.story or {}, task.get("id")
    try:
        uri = image_uri(config.image(region.to_name), task.get("data") or {}, region.item_index)
    except EdgeSamError:
        return None
    return Accepted(
        place=place,
        version=story["version"],
        shape=region.shape,
        prompt=story["prompt"],
        shape_hash=story.get("shape_hash"),
        submitted=mask,
        uri=uri,
        task_id=task_id if type(task_id) is int else None,
    )
