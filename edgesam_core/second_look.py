"""A second look at a small object: which part of the image to encode again, and the way there.

An object under 2 % of the image fills few cells of an embedding. Encoded alone, with some padding
around it, it fills many, and what the shrunk image lost of its edge is seen again. This file
is the geometry: the crop around a mask or box; prompts and earlier logits into the crop's frame;
the mask back into the image's. When a crop is encoded and who uses it is backend/second_look.py's
part.

A crop is whole pixels of the original, so that points and masks only move: nothing is rounded on
either way. Every step after the crop (preprocess.py to clean.py) takes it for an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgesam_core.arrays import ImageRGB, LogitsMap, SizeHW
from edgesam_core.candidates import CELL_PX, logits_at
from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.errors import ImageError
from edgesam_core.geometry import clip_box, input_to_original, original_to_input
from edgesam_core.windowed_mask import WindowedMask

MAX_SHARE = 0.02
"""Share of the image's pixels below which a mask counts as small."""

BOX_PADDING, MASK_PADDING = 1.6, 3.0
"""Side of a crop in longer sides of the box that was drawn, or of a mask without one.

A drawn box is where the object is; the mask after one click may be a part of it. Chosen on the even
ids of ../shared/data/research_only: 1.3 to 2.0 were alike for boxes and 3.0 to 4.0 for clicks,
where 2.0 often lost the object (docs/second_look.md).
"""

MIN_SIDE_PX = 96
"""Smaller crops would be enlarged until nothing but their blur is left to see."""

MIN_ZOOM = 1.5
"""How much smaller than the image's longer side a crop is at least: less is not worth an encode."""

MARGIN_SHARE = 0.02
"""Share of a crop's side that lies around a mask for the crop to hold it."""


@dataclass(frozen=True)
class Crop:
    """A part of an image, in whole pixels of the original."""

    x0: int
    y0: int
    x1: int
    y1: int
    # edges, so that x1 - x0 is the width
    original_size_hw: SizeHW
    # of the whole image

    def __post_init__(self) -> None:
        """Refuse a crop without pixels and one that leaves the image."""
        height, width = self.original_size_hw
        if not (0 <= self.x0 < self.x1 <= width and 0 <= self.y0 < self.y1 <= height):
            raise ValueError(
                f"crop {self.x0, self.y0, self.x1, self.y1} leaves the image {width}x{height}"
            )

    @property
    def size_hw(self) -> SizeHW:
        """(height, width) in pixels."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        """Its edges."""
        return self.x0, self.y0, self.x1, self.y1

    def holds(self, mask: WindowedMask) -> bool:
        """Whether a mask of the image has pixels, all of them inside with a margin.

        At the image's own border none is asked for.
        """
        if mask.box_xyxy is None:
            return False
        x0, y0, x1, y1 = mask.box_xyxy
        height, width = self.original_size_hw
        margin = MARGIN_SHARE * max(self.size_hw)
        return (
            x0 >= (self.x0 + margin if self.x0 > 0 else 0)
            and y0 >= (self.y0 + margin if self.y0 > 0 else 0)
            and x1 <= (self.x1 - margin if self.x1 < width else width)
            and y1 <= (self.y1 - margin if self.y1 < height else height)
        )


def cut(image: ImageRGB, crop_xyxy: Sequence[int]) -> ImageRGB:
    """The pixels of a crop.

    Args:
        image: [H, W, 3] uint8 RGB, the whole.
        crop_xyxy: [4] edges of the crop.

    Returns:
        [h, w, 3], a view.

    Raises:
        ImageError: The image is smaller than the one that the crop was made for.
    """
    x0, y0, x1, y1 = crop_xyxy
    height, width = image.shape[:2]
    if x1 > width or y1 > height:
        raise ImageError(
            "The image at this address has changed since it was clicked on. Click again."
        )
    return image[y0:y1, x0:x1]


def crop_around(
    box_xyxy: tuple[float, float, float, float],
    original_size_hw: SizeHW,
    *,
    padding: float,
    min_side_px: int = MIN_SIDE_PX,
) -> Crop | None:
    """The square around a box that is worth a second look; None where it would show little more.

    At the image's border it is moved inside, not cut.

    Args:
        box_xyxy: x0, y0, x1, y1 in original pixels, with an area, inside the image.
        original_size_hw: (height, width) in pixels.
        padding: Side of the crop in longer sides of the box.
        min_side_px: Side of the smallest crop, in pixels of the original.
    """
    height, width = original_size_hw
    x0, y0, x1, y1 = box_xyxy
    side = max(round(padding * max(x1 - x0, y1 - y0)), min_side_px)
    if side * MIN_ZOOM > max(height, width):
        return None
    crop_width, crop_height = min(side, width), min(side, height)
    left = min(max(round((x0 + x1 - crop_width) / 2), 0), width - crop_width)
    top = min(max(round((y0 + y1 - crop_height) / 2), 0), height - crop_height)
    return Crop(left, top, left + crop_width, top + crop_height, original_size_hw)


def crop_for_next_click(mask: WindowedMask, prompt: Prompt, earlier: Crop | None) -> Crop | None:
    """The crop on which to answer the next click on an object; None for the whole image.

    A crop that still holds the mask stays, so that it is encoded once for all clicks.

    Args:
        mask: What the annotator is shown, of the whole image.
        prompt: What it answers, in original pixels; its box goes into the crop with the mask.
        earlier: The crop that belonged to the click before.
    """
    height, width = mask.original_size_hw
    around = mask.box_xyxy
    if earlier is not None and earlier.holds(mask):
        return earlier
    if around is None or mask.area >= MAX_SHARE * height * width:
        return None
    if prompt.box_xyxy is None:
        return crop_around(around, (height, width), padding=MASK_PADDING)
    x0, y0, x1, y1 = (float(edge) for edge in clip_box(prompt.box_xyxy, (height, width)))
    around = min(x0, around[0]), min(y0, around[1]), max(x1, around[2]), max(y1, around[3])
    return crop_around(around, (height, width), padding=BOX_PADDING)


def prompt_in_crop(prompt: Prompt, crop: Crop) -> Prompt | None:
    """A prompt in the crop's frame, without earlier logits; None where part of it lies outside.

    Args:
        prompt: In original pixels of the image.
        crop: Of that image.
    """
    offset = np.array([crop.x0, crop.y0], dtype=np.float32)
    height, width = crop.size_hw
    points = prompt.point_coords - offset
    if not np.all((points >= 0) & (points <= (width, height))):
        return None
    box = None
    if prompt.box_xyxy is not None:
        box = clip_box(prompt.box_xyxy, crop.original_size_hw) - np.tile(offset, 2)
        if not np.all((box >= 0) & (box <= (width, height, width, height))):
            return None
    return replace(prompt, point_coords=points, box_xyxy=box, mask_input=None)


def logits_in_crop(
    low_res_logits: LogitsMap, embedding: Embedding, crop: Crop, crop_embedding: Embedding
) -> LogitsMap:
    """Logits of the whole image, seen in the crop's frame: a mask input for the first click there.

    Args:
        low_res_logits: [S/4, S/4] of a mask of the whole image.
        embedding: Of the whole image.
        crop: Of it.
        crop_embedding: Of the crop.

    Returns:
        [S/4, S/4] float32, bilinear between the cells; in the padding the nearest cell counts.
    """
    side = crop_embedding.input_size // CELL_PX
    centres = (np.arange(side) + 0.5) * CELL_PX
    x, y = np.meshgrid(centres, centres)  # [S/4, S/4]
    in_crop = input_to_original(
        np.stack([x.ravel(), y.ravel()], axis=1), crop.size_hw, crop_embedding.input_size_hw
    )
    in_input = original_to_input(
        in_crop + np.array([crop.x0, crop.y0]), crop.original_size_hw, embedding.input_size_hw
    )
    return logits_at(low_res_logits, in_input / CELL_PX).reshape(side, side)


def mask_in_image(mask: WindowedMask, crop: Crop) -> WindowedMask:
    """A mask of the crop as a mask of the whole image.

    Raises:
        ValueError: The mask is of another size than the crop.
    """
    if mask.original_size_hw != crop.size_hw:
        raise ValueError(f"mask of {mask.original_size_hw}, crop of {crop.size_hw}")
    return WindowedMask(mask.runs, mask.x0 + crop.x0, mask.y0 + crop.y0, crop.original_size_hw)
