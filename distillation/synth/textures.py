"""What fills an outline: colours, patterns, pieces of photos, and light on a body.

A drawn texture is a field of levels (uint8, wrapping) looked up in a palette of 256 colours, which
makes stripes, checks, wood, clouds and gradients one idea. Arrays stay uint8 and window-sized.
Where things are painted is decided in ``procedural.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from distillation.synth.canvas import UInt8Array, multiply

Rng = np.random.Generator
Colour = tuple[float, float, float]
"""RGB, 0..255."""

_TILE_PX = 640
_TILE_SPREAD = 40.0


@lru_cache(maxsize=1)
def _noise_tile() -> UInt8Array:
    """White noise around 128, [640, 640, 3]; windows of it are as good as fresh noise."""
    tile = np.random.default_rng(0).normal(128, _TILE_SPREAD, (_TILE_PX, _TILE_PX, 3))
    return np.clip(tile, 0, 255).astype(np.uint8)


def white_noise(rng: Rng, height: int, width: int) -> UInt8Array:
    """Noise [height, width, 3] around 128 with a spread of 40 levels."""
    tile = _noise_tile()
    repeat = -(-max(height, width) // _TILE_PX)
    if repeat > 1:
        tile = np.tile(tile, (repeat, repeat, 1))
    y = int(rng.integers(tile.shape[0] - height + 1))
    x = int(rng.integers(tile.shape[1] - width + 1))
    return tile[y : y + height, x : x + width]


def random_colour(rng: Rng) -> Colour:
    """An RGB colour, more often dull than bright, as in photos."""
    *hue, chance, brightness = rng.random(5).tolist()
    saturation, value = chance**1.5, 255 * (0.06 + 0.94 * brightness)
    most = max(*hue, 1e-3)
    r, g, b = (value * (1 - saturation * (1 - part / most)) for part in hue)
    return r, g, b


def near_colour(rng: Rng, colour: Colour, distance: float) -> Colour:
    """A colour about ``distance`` levels away, mostly darker or lighter."""
    chance, *tilt = rng.random(4).tolist()
    brightness = sum(colour) / 3
    lighter = brightness < distance or (chance < 0.5 and brightness + distance < 255)
    step = distance if lighter else -distance
    r, g, b = (
        min(max(level + step * (0.4 + 1.2 * t), 0.0), 255.0)
        for level, t in zip(colour, tilt, strict=True)
    )
    return r, g, b


def clouds(rng: Rng, height: int, width: int, *, cells: int, roughness: float) -> UInt8Array:
    """Noise in octaves, [height, width] uint8 that spans about 0..255.

    Args:
        rng: Source of chance.
        height: Rows.
        width: Columns.
        cells: Cells of the coarsest octave along the longer side.
        roughness: Size of each octave relative to the one before, 0..1.
    """
    longer = max(height, width)
    field, weight = rng.random((cells, cells), np.float32), 1.0
    while cells * 4 < longer and weight > 0.05:
        cells, weight = cells * 4, weight * roughness
        field = cv2.resize(field, (cells, cells), interpolation=cv2.INTER_LINEAR)
        field += np.float32(weight) * rng.random((cells, cells), np.float32)
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.normalize(field, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)


def _ramp(rng: Rng, height: int, width: int, cycles: float, angle: float) -> UInt8Array:
    """Levels that rise by 256 ``cycles`` times across the window, wrapping."""
    per_px = 256 * cycles / max(height, width)
    down = (np.arange(height) * (per_px * np.sin(angle)) + rng.uniform(0, 256)).astype(np.int64)
    across = (np.arange(width) * (per_px * np.cos(angle))).astype(np.int64)
    return down.astype(np.uint8)[:, None] + across.astype(np.uint8)[None, :]


def _palette(colours: Sequence[Colour], *, sharp: bool, cyclic: bool) -> UInt8Array:
    """[256, 1, 3] lookup through the colours, in steps or blended; cyclic ends where it starts."""
    knots = [*colours, colours[0]] if cyclic and not sharp else list(colours)
    row = np.array(knots, np.uint8)[:, None]  # [k, 1, 3]
    way = cv2.INTER_NEAREST if sharp else cv2.INTER_LINEAR
    return cv2.resize(row, (1, 256), interpolation=way)


def drawn_texture(rng: Rng, height: int, width: int, base: Colour) -> UInt8Array:
    """A pattern [height, width, 3] whose first colour is ``base``."""
    kind = rng.random()
    if kind < 0.12:
        return np.full((height, width, 3), np.array(base, np.uint8))
    spread = rng.uniform(8, 40) if rng.random() < 0.6 else rng.uniform(40, 140)
    colours = [base] + [near_colour(rng, base, spread) for _ in range(int(rng.integers(1, 3)))]
    if rng.random() < 0.15:
        colours[-1] = random_colour(rng)
    longer, angle = max(height, width), rng.uniform(0, 2 * np.pi)
    sharp, cyclic = False, False
    if kind < 0.3:  # gradient, straight or round
        if rng.random() < 0.6:
            cycles, cyclic = rng.uniform(0.2, 1.0), True
            field = _ramp(rng, height, width, cycles, angle)
        else:
            y = ((np.arange(height, dtype=np.float32) / longer - rng.uniform(0, 1)) ** 2)[:, None]
            x = ((np.arange(width, dtype=np.float32) / longer - rng.uniform(0, 1)) ** 2)[None]
            field = (np.sqrt(y + x) * 180).astype(np.uint8)
    elif kind < 0.42:  # stripes, some of them wavy like wood or marble
        cycles, sharp, cyclic = rng.uniform(2, max(longer / 5, 2.5)), rng.random() < 0.5, True
        field = _ramp(rng, height, width, cycles, angle)
        if rng.random() < 0.5:
            field = field + clouds(rng, height, width, cells=3, roughness=0.4)
    elif kind < 0.5:  # checks and woven cloth
        cycles, sharp = rng.uniform(2, max(longer / 6, 2.5)), rng.random() < 0.7
        field = _ramp(rng, height, width, cycles, angle)
        other = _ramp(rng, height, width, cycles, angle + np.pi / 2)
        field = (field ^ other) if sharp else cv2.addWeighted(field, 0.5, other, 0.5, 0)
        cyclic = not sharp
    elif kind < 0.85:  # clouds, stone, foliage, camouflage
        sharp = rng.random() < 0.15
        field = clouds(
            rng, height, width, cells=int(rng.integers(2, 12)), roughness=rng.uniform(0.2, 0.9)
        )
    else:  # speckle: sand, grain, asphalt
        field = white_noise(rng, height, width)[:, :, 0]
        if rng.random() < 0.5:
            field = cv2.GaussianBlur(field, (5, 5), rng.uniform(0.6, 2))
    palette = _palette(colours, sharp=sharp, cyclic=cyclic)
    return cv2.applyColorMap(np.ascontiguousarray(field), palette)


def photo_texture(
    rng: Rng, height: int, width: int, photos: Sequence[UInt8Array], base: Colour | None = None
) -> UInt8Array:
    """A piece of a photo [height, width, 3], flipped, scaled, and often tinted towards ``base``."""
    photo = photos[int(rng.integers(len(photos)))]
    zoom = np.exp(rng.uniform(np.log(0.6), np.log(2.0)))  # pixels of ours per pixel of the photo
    rows, columns = (max(round(side / zoom), 2) for side in (height, width))
    shrink = min(1.0, photo.shape[0] / rows, photo.shape[1] / columns)
    rows, columns = max(int(rows * shrink), 1), max(int(columns * shrink), 1)
    y = int(rng.integers(photo.shape[0] - rows + 1))
    x = int(rng.integers(photo.shape[1] - columns + 1))
    piece = cv2.resize(photo[y : y + rows, x : x + columns], (width, height))
    if rng.random() < 0.5:
        piece = cv2.flip(piece, 1)
    if base is not None and rng.random() < 0.6:
        contrast = rng.uniform(0.4, 1.1)
        mean = np.array(cv2.mean(piece)[:3])
        target = mean + (np.array(base) - mean) * rng.uniform(0.5, 1.0)
        levels = np.arange(256)[:, None]
        piece = cv2.LUT(piece, lookup((levels - mean) * contrast + target))
    return piece


def lookup(levels: npt.NDArray[np.float64]) -> UInt8Array:
    """A table for ``cv2.LUT`` from [256, 1 or 3] output levels, which may run over."""
    return np.minimum(np.maximum(levels, 0), 255).astype(np.uint8)[:, None]


def light_on_body(rng: Rng, alpha: UInt8Array, light_xy: tuple[float, float]) -> UInt8Array:
    """How a rounded body of this outline is lit: Lambert's law on a pillow of the outline.

    Args:
        rng: Source of chance, for the body's roundness.
        alpha: [h, w] uint8 coverage.
        light_xy: Unit vector towards the light in the picture plane.

    Returns:
        [h, w] uint8 factor, 128 keeps the colour. It is computed at 40 px and enlarged.
    """
    height, width = alpha.shape
    shrink = min(1.0, 40 / max(height, width))
    small = cv2.resize(
        alpha, (max(int(width * shrink), 2), max(int(height * shrink), 2)), interpolation=3
    )
    depth = cv2.distanceTransform((small > 127).astype(np.uint8), cv2.DIST_L2, 3)
    deepest = max(float(depth.max()), 1.0)
    relief = cv2.blur(np.sqrt(depth / deepest), (5, 5))
    slope = cv2.Sobel(relief, cv2.CV_32F, 1, 0) * light_xy[0]
    slope += cv2.Sobel(relief, cv2.CV_32F, 0, 1) * light_xy[1]
    slope *= np.float32(-deepest / 8 * rng.uniform(0.2, 0.7))  # facing away from the light: dark
    factor = (128 * (1 + np.minimum(np.maximum(slope, -0.6), 0.6))).astype(np.uint8)
    return cv2.resize(factor, (width, height), interpolation=cv2.INTER_LINEAR)


def lit(rng: Rng, rgb: UInt8Array, alpha: UInt8Array, light_xy: tuple[float, float]) -> UInt8Array:
    """The texture [h, w, 3] with light on it and sometimes a specular highlight."""
    rgb = multiply(rgb, light_on_body(rng, alpha, light_xy), one=128)
    if rng.random() < 0.25:
        height, width = alpha.shape
        spot = np.zeros((24, 24), np.uint8)
        centre = (round(12 + 5 * light_xy[0]), round(12 + 5 * light_xy[1]))
        brightness = int(rng.integers(60, 255))
        cv2.ellipse(spot, centre, (3, 2), rng.uniform(0, 180), 0, 360, brightness, -1)
        spot = cv2.resize(cv2.blur(spot, (3, 3)), (width, height), interpolation=cv2.INTER_LINEAR)
        rgb = cv2.add(rgb, cv2.cvtColor(spot, cv2.COLOR_GRAY2RGB))
    return rgb


def soft_shadow(alpha: UInt8Array, *, blur_px: float, strength: float) -> tuple[UInt8Array, int]:
    """The shadow of an outline: [h + 2m, w + 2m] uint8 factor (255 keeps the light), and m."""
    height, width = alpha.shape
    margin, coarse = round(2 * blur_px) + 1, max(round(blur_px / 2), 1)
    padded = cv2.copyMakeBorder(alpha, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    size = (max((width + 2 * margin) // coarse, 1), max((height + 2 * margin) // coarse, 1))
    small = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), max(blur_px / coarse, 0.5))
    shade = cv2.resize(small, (width + 2 * margin, height + 2 * margin))
    return cv2.addWeighted(shade, -strength, shade, 0, 255), margin
