"""Copy-paste scenes: real objects, cut out, on real photos; what was pasted is an exact mask.

Sets, kinds and shares follow the data folder's notes: the set is drawn first (photos about 80 %),
then the kind, then the file, or ants and pandas will rule.

Source:
    Simple Copy-Paste (arXiv 2012.07177), with cut-outs from elsewhere instead of the same batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from distillation.synth.camera import through_camera
from distillation.synth.canvas import BoolArray, Canvas, Coverage, Scene, UInt8Array
from distillation.synth.textures import Rng, lookup, soft_shadow
from edgesam_core.errors import RunError

DRAWN_SETS = frozenset({"fluent_emoji_3d", "openmoji", "superpowers_sprites"})
"""Cut-out sets that are drawings; every other folder counts as photos."""

PHOTO_SHARE = 0.8
"""Share of cut-outs from photos."""


@dataclass(frozen=True)
class Cutout:
    """An object with transparent ground.

    Attributes:
        rgba: [h, w, 4] uint8, colours not multiplied by alpha; the ground carries on the colours of
            the object's edge, so that a softened edge shows no rim.
        is_drawn: A small drawing, to be enlarged by no more than 2.
    """

    rgba: UInt8Array
    is_drawn: bool = False


def read_cutout(path: Path, *, is_drawn: bool = False) -> Cutout:
    """Decode one cut-out and let its colours run out into the transparent ground.

    Raises:
        RunError: It cannot be read.
    """
    try:
        with Image.open(path) as opened:
            rgba = np.array(opened.convert("RGBA"))
    except (OSError, Image.DecompressionBombError) as exc:
        raise RunError(f"The cut-out {path} could not be read.") from exc
    alpha = rgba[:, :, 3].astype(np.float32) / 255
    blurred_alpha = cv2.blur(alpha, (9, 9))[:, :, None]
    blurred = cv2.blur(rgba[:, :, :3] * alpha[:, :, None], (9, 9))
    ground = alpha < 0.5
    rgba[ground, :3] = (blurred / np.maximum(blurred_alpha, 1e-3))[ground]
    return Cutout(rgba, is_drawn)


class CutoutLibrary:
    """The cut-outs of a folder, each decoded when first drawn and then kept as uint8."""

    def __init__(self, files_by_set: dict[str, list[Path]]) -> None:
        """Take the files of each set; a name is ``<kind>_<number>.webp``."""
        self._kinds: dict[str, list[list[Path]]] = {}
        for name, files in sorted(files_by_set.items()):
            by_kind: defaultdict[str, list[Path]] = defaultdict(list)
            for file in sorted(files):
                by_kind[file.stem.rpartition("_")[0]].append(file)
            self._kinds[name] = [by_kind[kind] for kind in sorted(by_kind)]
        self._sets = list(self._kinds)
        # Within photos, and within drawings, larger sets come more often, but less than in
        # proportion to their size.
        weight = np.array([len(files_by_set[name]) ** 0.5 for name in self._sets])
        is_drawn = np.array([name in DRAWN_SETS for name in self._sets])
        for group, share in ((~is_drawn, PHOTO_SHARE), (is_drawn, 1 - PHOTO_SHARE)):
            weight[group] *= share / max(weight[group].sum(), 1e-9)
        self._upper = np.cumsum(weight / weight.sum())
        self._cache: dict[Path, Cutout] = {}

    def __len__(self) -> int:
        """Number of cut-outs."""
        return sum(len(files) for kinds in self._kinds.values() for files in kinds)

    def draw(self, rng: Rng) -> Cutout:
        """A cut-out by chance: the set, then the kind, then the file."""
        index = min(int(np.searchsorted(self._upper, rng.random())), len(self._sets) - 1)
        name = self._sets[index]
        kinds = self._kinds[name]
        files = kinds[int(rng.integers(len(kinds)))]
        path = files[int(rng.integers(len(files)))]
        if path not in self._cache:
            self._cache[path] = read_cutout(path, is_drawn=name in DRAWN_SETS)
        return self._cache[path]


def load_cutouts(folder: Path, *, sets: Collection[str] | None = None) -> CutoutLibrary:
    """The library of a folder ``<set>/<kind>_<number>.webp``.

    Args:
        folder: The folder of sets.
        sets: Take these sets only (their licences differ); None for all.

    Raises:
        RunError: No cut-out is there.
    """
    files_by_set: dict[str, list[Path]] = {}
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        if child.is_dir() and (sets is None or child.name in sets):
            files_by_set[child.name] = sorted(child.glob("*.webp"))
    files_by_set = {name: files for name, files in files_by_set.items() if files}
    if not files_by_set:
        raise RunError(f"There are no cut-outs (<set>/<kind>_<number>.webp) in {folder}.")
    return CutoutLibrary(files_by_set)


def square_crop(
    rng: Rng, image: UInt8Array, size: int, masks: BoolArray | None
) -> tuple[UInt8Array, BoolArray | None]:
    """A square of the photo at ``size`` px, and the masks in it; one that fits is taken whole.

    Args:
        rng: Source of chance: 60 to 100 % of the shorter side, flipped in half of the cases.
        image: [H, W, 3] uint8.
        size: Side of the result in pixels.
        masks: [N, H, W] bool, or None.

    Returns:
        [size, size, 3] uint8, and [N', size, size] bool or None; masks outside are left out.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        y = x = 0
        side = size
    else:
        side = max(int(min(height, width) * rng.uniform(0.6, 1.0)), 1)
        y = int(rng.integers(height - side + 1))
        x = int(rng.integers(width - side + 1))
    flip = rng.random() < 0.5
    window = (slice(y, y + side), slice(x, x + side))
    way = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    square = cv2.resize(image[window], (size, size), interpolation=way)
    square = cv2.flip(square, 1) if flip else square
    if masks is None:
        return square, None
    kept = []
    for mask in masks:
        piece = mask[window]
        if piece.any():
            levels = np.ascontiguousarray(piece).view(np.uint8) * np.uint8(255)
            fitted = cv2.resize(levels, (size, size), interpolation=way) > 127
            kept.append(fitted[:, ::-1] if flip else fitted)
    return square, np.array(kept, np.bool_).reshape(-1, size, size)


def _placed(rng: Rng, cutout: Cutout, size: int) -> tuple[Coverage, UInt8Array] | None:
    """One cut-out scaled, flipped, turned and put somewhere: its coverage and its colours."""
    height, width = cutout.rgba.shape[:2]
    longer_px = size * 0.05 * 12 ** (rng.random() ** 0.7)  # 5 to 60 %, small ones often
    scale = longer_px / max(height, width)
    scale = min(scale, 2.0) if cutout.is_drawn else scale
    rgba = cutout.rgba
    if scale < 0.7:  # Shrink with every pixel counted first; the turn below samples only four.
        shrunk = (max(round(width * scale), 2), max(round(height * scale), 2))
        rgba = cv2.resize(rgba, shrunk, interpolation=cv2.INTER_AREA)
        scale, (height, width) = 1.0, rgba.shape[:2]
    angle = np.deg2rad(np.clip(rng.normal(0, 12), -30, 30))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[cosine * flip, -sine], [sine * flip, cosine]])
    half = np.abs(turn) @ (width / 2, height / 2) + 2
    centre = rng.uniform(0.05, 0.95, 2) * size
    x0, y0 = np.clip(np.floor(centre - half), 0, size).astype(int)
    x1, y1 = np.clip(np.ceil(centre + half), 0, size).astype(int)
    if x1 - x0 < 4 or y1 - y0 < 4:
        return None
    shift = centre - (x0, y0) - turn @ (width / 2, height / 2)
    # OpenCV's pixel centres are integers, ours are halves.
    shift += turn @ (0.5, 0.5) - 0.5
    placed = cv2.warpAffine(
        rgba, np.column_stack([turn, shift]), (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR
    )
    alpha = cv2.GaussianBlur(placed[:, :, 3], (5, 5), rng.uniform(0.5, 1.5) * min(size / 256, 1))
    return Coverage(alpha, int(x0), int(y0)), np.ascontiguousarray(placed[:, :, :3])


def _toned(rng: Rng, rgb: UInt8Array, cover: Coverage, ground: UInt8Array) -> UInt8Array:
    """Brightness and colour moved a little, and some way towards the ground it lies on."""
    inside = (cover.alpha > 127).view(np.uint8)
    own = np.array(cv2.mean(rgb, mask=inside)[:3])
    around = np.array(cv2.mean(ground[cover.window])[:3])
    shift = (around - own) * rng.uniform(0, 0.35) + rng.normal(0, 10) + rng.normal(0, 4, 3)
    levels = (np.arange(256)[:, None] - own) * rng.uniform(0.75, 1.2) + own + shift
    return cv2.LUT(rgb, lookup(levels))


def paste_scene(
    rng: Rng,
    background: UInt8Array,
    cutouts: Sequence[Cutout],
    size: int,
    background_masks: BoolArray | None = None,
) -> Scene:
    """Cut-outs pasted over a photo, one after the other.

    Args:
        rng: Source of chance; the same state gives the same scene.
        background: [H, W, 3] uint8 RGB; one of another size than the scene is cropped to a square.
        cutouts: 3 to 12 is a good number; each comes out at 5 to 60 % of the side.
        size: Side of the scene in pixels.
        background_masks: [N, H, W] bool, what is known in the background, or None.

    Returns:
        The scene: first the background's masks without what is covered, then the cut-outs' masks.
        It may have none when everything lies outside the frame or is covered.
    """
    ground, masks = square_crop(rng, background, size, background_masks)
    canvas = Canvas(np.ascontiguousarray(ground))
    for cutout in cutouts:
        placed = _placed(rng, cutout, size)
        if placed is None or canvas.is_full:
            continue
        cover, rgb = placed
        if rng.random() < 0.3:
            shade, margin = soft_shadow(
                cover.alpha, blur_px=size * rng.uniform(0.01, 0.03), strength=rng.uniform(0.2, 0.6)
            )
            drop = rng.normal(0, 0.02, 2) * size
            x0 = cover.x0 - margin + round(drop[0])
            canvas.darken(shade, x0, cover.y0 - margin + round(drop[1]))
        canvas.paint(cover, _toned(rng, rgb, cover, canvas.image))
    image = through_camera(rng, canvas.image, strength=0.5)
    return Scene(image, canvas.visible_masks(ground_masks=masks))
