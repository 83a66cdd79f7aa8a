"""What a camera does to a finished scene: tone, colour cast, uneven light, blur, noise, JPEG.

The masks do not change: nothing here moves an edge. Last step of ``procedural.py`` and
``paste.py``.
"""

from __future__ import annotations

import cv2
import numpy as np

from distillation.synth.canvas import UInt8Array, multiply
from distillation.synth.textures import Rng, lookup, white_noise


def _tone(rng: Rng, image: UInt8Array, strength: float) -> UInt8Array:
    """Gamma, contrast, brightness and sometimes a colour cast, in one lookup."""
    channels = 3 if rng.random() < 0.4 * strength else 1
    levels = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.normal(0, 0.2 * strength))
    gain = np.exp(rng.normal(0, 0.12 * strength) + rng.normal(0, 0.07 * strength, channels))
    table = (levels - 0.5) * gain + 0.5 + rng.normal(0, 0.04 * strength)
    return cv2.LUT(image, lookup(255 * table))


def _uneven_light(rng: Rng, image: UInt8Array) -> UInt8Array:
    """A vignette, or light that falls in from one side."""
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        axis = np.linspace(-1, 1, 16) ** 2
        factor = 255 * (1 - rng.uniform(0.1, 0.5) * (axis[:, None] + axis[None]) / 2)
    else:
        factor = rng.uniform(255 * rng.uniform(0.4, 0.9), 255, (3, 3))
    smooth = cv2.resize(factor.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
    return multiply(image, smooth, one=230)


def _blur(rng: Rng, image: UInt8Array) -> UInt8Array:
    """Out of focus, or shaken along one direction."""
    if rng.random() < 0.8:
        return cv2.GaussianBlur(image, (5, 5), rng.uniform(0.3, 1.2))
    length = int(rng.integers(2, 4))
    kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
    angle = rng.uniform(0, np.pi)
    tip = np.rint(length * np.array([np.cos(angle), np.sin(angle)])).astype(int)
    cv2.line(kernel, (length - tip[0], length - tip[1]), (length + tip[0], length + tip[1]), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def _noise(rng: Rng, image: UInt8Array, strength: float) -> UInt8Array:
    """Sensor noise, grey or coloured; sometimes coarse, as after strong compression."""
    height, width = image.shape[:2]
    noise = white_noise(rng, height, width)
    if rng.random() < 0.5:
        noise = cv2.cvtColor(noise[:, :, 0].copy(), cv2.COLOR_GRAY2RGB)
    share = strength * np.exp(rng.uniform(np.log(1.0), np.log(14.0))) / 40
    return cv2.addWeighted(image, 1.0, noise, share, -128 * share)


def _jpeg(rng: Rng, image: UInt8Array) -> UInt8Array:
    quality = int(rng.integers(30, 95))
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def through_camera(rng: Rng, image: UInt8Array, *, strength: float = 1.0) -> UInt8Array:
    """The scene as a camera might have kept it.

    Args:
        rng: Source of chance.
        image: [H, W, 3] uint8 RGB.
        strength: 1.0 for drawn scenes; less where the picture has been through a camera before.

    Returns:
        [H, W, 3] uint8 RGB, the same geometry.
    """
    image = _tone(rng, image, strength)
    if rng.random() < 0.3 * strength:
        image = _uneven_light(rng, image)
    if rng.random() < 0.45 * strength:
        image = _blur(rng, image)
    if rng.random() < 0.6 * strength:
        image = _noise(rng, image, strength)
    if rng.random() < 0.05:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.3 * strength:
        image = _jpeg(rng, image)
    return image
