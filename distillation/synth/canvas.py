"""The sheet on which synthetic scenes are painted, and the exact masks of what stays visible.

One uint8 map of ids stands beside the picture: whatever is painted later overwrites the ids below
it, so occlusion costs nothing and visible masks are disjoint by construction. An object may have
parts: the mask of the whole is then the union of the ids in its subtree. This file does not decide
what is painted (``procedural.py``, ``paste.py``) nor how it looks (``textures.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

cv2.setNumThreads(1)  # The loader's processes share the cores with the training itself.

MOST_OBJECTS = 200
"""Ids a canvas hands out before it is full; the map has room for 255."""

LEAST_AREA_SHARE = 0.001
"""A mask below this share of the scene is not returned."""

LEAST_VISIBLE_SHARE = 0.15
"""Of an object that shows less than this, no mask is returned: nobody would click the scraps."""


@dataclass(frozen=True)
class Scene:
    """A picture with an exact mask for each of its objects.

    Attributes:
        image: [S, S, 3] uint8 RGB.
        masks: [K, S, S] bool, what is visible of each object, never empty. Two masks are disjoint,
            or one is a part and lies inside the other, its whole (masks that came with a
            background photo keep what overlap they had).
    """

    image: UInt8Array
    masks: BoolArray


@dataclass(frozen=True)
class Coverage:
    """How much of each pixel an object covers, in the part of its window that is in the frame.

    Attributes:
        alpha: [h, w] uint8, 0 none, 255 all of the pixel; the mask is ``alpha > 127``.
        x0: Left column of the window in the scene, 0..S-w.
        y0: Upper row of the window in the scene, 0..S-h.
    """

    alpha: UInt8Array
    x0: int
    y0: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the scene."""
        height, width = self.alpha.shape
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)


def multiply(image: UInt8Array, factor: UInt8Array, *, one: int) -> UInt8Array:
    """The image [h, w, 3] times a grey factor [h, w], where the factor's level ``one`` keeps it."""
    return cv2.multiply(image, cv2.cvtColor(factor, cv2.COLOR_GRAY2RGB), scale=1.0 / one)


class Canvas:
    """A picture under work, with the id of the topmost object at each pixel.

    Attributes:
        image: [S, S, 3] uint8 RGB, painted in place.
        ids: [S, S] uint8, 0 for the ground.
    """

    def __init__(self, ground: UInt8Array) -> None:
        """Start from a ground [S, S, 3] uint8, which is kept and painted over."""
        self.image = ground
        self.ids: UInt8Array = np.zeros(ground.shape[:2], np.uint8)
        self._members = np.zeros((256, 256), np.bool_)  # [whole, id]: is id in whole's subtree
        self._parents = [0]
        self._painted_px = [0]

    def __len__(self) -> int:
        """Number of objects painted so far, visible or not."""
        return len(self._parents) - 1

    @property
    def is_full(self) -> bool:
        """No further object can be painted."""
        return len(self) >= MOST_OBJECTS

    def group(self, *, parent: int = 0) -> int:
        """A whole that has no paint of its own: the id to name as ``parent`` of its parts."""
        new_id = len(self._parents)
        self._parents.append(parent)
        self._painted_px.append(0)
        for whole in (new_id, *self._ancestors(new_id)):
            self._members[whole, new_id] = True
        return new_id

    def paint(
        self, cover: Coverage, rgb: UInt8Array, *, parent: int = 0, inside: bool = False
    ) -> int:
        """Paint an object over what is there.

        Args:
            cover: Where.
            rgb: [h, w, 3] uint8 of the cover's window.
            parent: Id of the whole of which this is a part; 0 for an object of its own.
            inside: Paint only where the parent is visible, as a window does on its facade.

        Returns:
            The id of the object.
        """
        image, ids = self.image[cover.window], self.ids[cover.window]
        alpha = cover.alpha
        covered = alpha > 127
        if inside:
            visible_parent = self._in_subtree(parent, ids)
            soft = cv2.blur(visible_parent.view(np.uint8) * np.uint8(255), (3, 3))
            alpha = cv2.multiply(alpha, soft, scale=1 / 255)
            covered &= visible_parent
        new_id = self.group(parent=parent)
        for whole in self._ancestors(new_id):
            self._painted_px[whole] += int((covered & ~self._in_subtree(whole, ids)).sum())
        self._painted_px[new_id] = int(covered.sum())
        weight = alpha.astype(np.float32) * np.float32(1 / 255)
        image[:] = cv2.blendLinear(rgb, image, weight, 1 - weight)
        ids[covered] = new_id
        return new_id

    def darken(self, shade: UInt8Array, x0: int, y0: int) -> None:
        """Multiply a window by ``shade`` [h, w] (255 keeps the light); it may stick out."""
        side = self.ids.shape[0]
        left, top = max(-x0, 0), max(-y0, 0)
        shade = shade[top : max(side - y0, 0), left : max(side - x0, 0)]
        if shade.size:
            window = Coverage(shade, x0 + left, y0 + top).window
            self.image[window] = multiply(self.image[window], shade, one=255)

    def visible_masks(self, *, ground_masks: BoolArray | None = None) -> BoolArray:
        """What is left to see of each object, without crumbs.

        Args:
            ground_masks: [N, S, S] bool, masks of things in the ground; they lose what is covered.

        Returns:
            [K, S, S] bool: the ground's masks first, then the objects in the order of painting. A
            part that fills 95 % of its whole is left out, being the same mask again.
        """
        least_px = max(LEAST_AREA_SHARE * self.ids.size, 1)
        masks: list[BoolArray] = []
        ground = self.ids == 0
        for ground_mask in () if ground_masks is None else ground_masks:
            mask = ground_mask & ground
            needed = max(least_px, LEAST_VISIBLE_SHARE * np.count_nonzero(ground_mask))
            if np.count_nonzero(mask) >= needed:
                masks.append(mask)
        count = len(self._parents)
        members = self._members[:count, :count]
        leaf_px = np.array(cv2.calcHist([self.ids], [0], None, [256], [0, 256])[:count, 0])
        visible_px = members @ leaf_px  # [count] pixels of each subtree
        for object_id in range(1, count):
            area, parent = visible_px[object_id], self._parents[object_id]
            if area < max(least_px, LEAST_VISIBLE_SHARE * self._painted_px[object_id]):
                continue
            if parent and area >= 0.95 * visible_px[parent]:
                continue
            if area == leaf_px[object_id]:
                masks.append(self.ids == object_id)
            else:
                masks.append(self._in_subtree(object_id, self.ids))
        return np.array(masks, np.bool_).reshape(-1, *self.ids.shape)

    def _in_subtree(self, whole: int, ids: UInt8Array) -> BoolArray:
        return cv2.LUT(ids, self._members[whole].view(np.uint8)).view(np.bool_)

    def _ancestors(self, object_id: int) -> list[int]:
        chain = []
        while (object_id := self._parents[object_id]) != 0:
            chain.append(object_id)
        return chain
