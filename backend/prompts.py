"""Label Studio's context to prompts: which clicks and rectangles mean which object.

``context.result`` holds the smart regions that the annotator has drawn and not yet accepted;
prompt_regions.py reads them. This file says what they ask for, in percent of the image as they
came; `ObjectPrompt.in_pixels` turns that into pixels once the size of the image is known. It looks
at no image and runs no model.

The rules, for regions of one object tag and one label:

- all keypoints together are one prompt; each rectangle is a prompt, and a region, of its own;
- one rectangle and keypoints are one prompt with both (the page never sends that, callers may);
- several rectangles and keypoints: a keypoint belongs to the smallest rectangle around it, and
  keypoints outside all of them make a prompt of their own;
- a prompt without a rectangle or a positive click asks for nothing (`Prompts.negatives_only`);
- only one picture of a ``valueList`` is answered, that of the tag's last region: Label Studio sends
  the pending prompts of the other pages along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.prompt_regions import Keypoint, PromptRegion, Rectangle, read_regions
from edgesam_core.arrays import LogitsMap, SizeHW
from edgesam_core.decode import Prompt
from edgesam_core.errors import ImageError, RequestError
from edgesam_core.geometry import percent_to_pixels, rectangle_percent_to_box

_MAX_REGIONS = 1000


@dataclass(frozen=True)
class ObjectPrompt:
    """What was drawn for one object: points, or a box, or both."""

    points: tuple[Keypoint, ...]
    box: Rectangle | None
    labels: tuple[str, ...]

    @property
    def asks_for_something(self) -> bool:
        """False where there are only negative clicks: nothing to take away from."""
        return self.box is not None or any(point.is_positive for point in self.points)

    def in_pixels(self, original_size_hw: SizeHW, mask_input: LogitsMap | None = None) -> Prompt:
        """The prompt in pixels of the original image.

        Args:
            original_size_hw: (height, width) after EXIF.
            mask_input: Earlier logits to refine, see refinement.py.

        Raises:
            PromptError: A click or the box lies outside the image, or a number is none.
        """
        percents = [(point.x_percent, point.y_percent) for point in self.points]
        coords = np.array(percents, dtype=np.float64).reshape(-1, 2)
        box = self.box
        return Prompt(
            point_coords=percent_to_pixels(coords, original_size_hw),
            point_labels=np.array([p.is_positive for p in self.points], dtype=np.float32),
            box_xyxy=None
            if box is None
            else rectangle_percent_to_box(
                box.x_percent,
                box.y_percent,
                box.width_percent,
                box.height_percent,
                box.rotation_degrees,
                original_size_hw,
            ),
            mask_input=mask_input,
        )


@dataclass(frozen=True)
class Prompts:
    """What a context asks for on one picture of one object tag."""

    to_name: str
    item_index: int | None
    original_size_hw: SizeHW | None
    objects: tuple[ObjectPrompt, ...]
    # those that ask for something
    negatives_only: bool
    # there were clicks, all of them negative
    region_ids: frozenset[str]
    # of all that was drawn here; empty where any of it came without (superseded.py)

    def check_size(self, actual_hw: SizeHW) -> None:
        """Refuse an image of another size than the one that the annotator sees.

        Raises:
            ImageError: A mask of it would be drawn askew, or break the page.
        """
        seen = self.original_size_hw
        if seen is not None and seen != actual_hw:
            raise ImageError(
                f"The page shows the image with {seen[1]} x {seen[0]} pixels, the file has "
                f"{actual_hw[1]} x {actual_hw[0]}. Reload the page; if it stays, the image was "
                "replaced after the import: import the task again."
            )


def read_prompts(context: Mapping[str, Any] | None) -> list[Prompts]:
    """Read the prompts of a request.

    Args:
        context: ``params.context`` of the request, or None.

    Returns:
        One item for each object tag that was drawn on (the page sends one at a time); empty where
        nothing was drawn: no context, no result, or no prompt among the results.

    Raises:
        RequestError: The context is not built as Label Studio's.
        PromptError: A region of a type that is no prompt, one that cannot be read, or one that
            lies outside the image.
    """
    results = (context or {}).get("result")
    if results is None:
        return []
    if not isinstance(results, list) or not all(isinstance(r, dict) for r in results):
        raise RequestError("context.result should be a list of regions, as Label Studio sends it.")
    if len(results) > _MAX_REGIONS:
        raise RequestError(
            f"The request has {len(results)} prompts, {_MAX_REGIONS} are allowed. Accept or "
            "reject what is pending and try again."
        )
    by_tag: dict[str, list[PromptRegion]] = {}
    for region in read_regions(results):
        by_tag.setdefault(region.to_name, []).append(region)
    return [_prompts_of(regions) for regions in by_tag.values()]


def _prompts_of(regions: list[PromptRegion]) -> Prompts:
    """The prompts of one object tag, on the picture where the last one was drawn."""
    last = regions[-1]
    on_picture = [r for r in regions if r.item_index == last.item_index]
    objects = _group(on_picture)
    for prompt in objects:  # refuse what lies outside before an image is fetched for it
        prompt.in_pixels(last.original_size_hw or (100, 100))
    asking = tuple(prompt for prompt in objects if prompt.asks_for_something)
    ids = frozenset(r.region_id for r in on_picture if r.region_id)
    return Prompts(
        to_name=last.to_name,
        item_index=last.item_index,
        original_size_hw=last.original_size_hw,
        objects=asking,
        negatives_only=not asking,
        region_ids=ids if all(r.region_id for r in on_picture) else frozenset(),
    )


def _group(regions: list[PromptRegion]) -> list[ObjectPrompt]:
    """Regions of one picture as prompts, object by object."""
    by_labels: dict[tuple[str, ...], list[PromptRegion]] = {}
    for region in regions:
        by_labels.setdefault(region.labels, []).append(region)
    prompts = []
    for labels, group in by_labels.items():
        points = [r.shape for r in group if isinstance(r.shape, Keypoint)]
        boxes = [r.shape for r in group if isinstance(r.shape, Rectangle)]
        owned: dict[int | None, list[Keypoint]] = {}
        for point in points:
            owned.setdefault(_owner(point, boxes), []).append(point)
        prompts += [
            ObjectPrompt(tuple(owned.get(index, ())), box, labels)
            for index, box in enumerate(boxes)
        ]
        if None in owned:
            prompts.append(ObjectPrompt(tuple(owned[None]), None, labels))
    return prompts


def _owner(point: Keypoint, rectangles: list[Rectangle]) -> int | None:
    """Index of the rectangle that a click belongs to; None where it stands alone."""
    if len(rectangles) == 1:
        return 0
    around = [i for i, rectangle in enumerate(rectangles) if rectangle.encloses(point)]
    return min(around, key=lambda i: rectangles[i].area, default=None)
