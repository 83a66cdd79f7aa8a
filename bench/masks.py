"""What masks of several kinds cost after the decoder, each step beside its peer in the same run.

Peers (stock.py): OpenCV and label-studio-sdk. Both are needed to run this, neither to serve.

    python -m bench masks
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from label_studio_sdk.converter.brush import decode_rle

from bench import stock
from bench.timing import alternate
from edgesam_core.clean import remove_specks
from edgesam_core.polygon import mask_to_polygons
from edgesam_core.rle import brush_rle_to_mask, mask_to_brush_rle
from edgesam_core.upscale import upscale
from edgesam_core.windowed_mask import WindowedMask

REPEATS = 9
MIN_AREA_PX = 64
RLE_GOAL = 1 / 8
"""The encoder is to be at least 8 times as fast as the SDK's."""
SIZES_HW = {"1200x900": (900, 1200), "4000x3000": (3000, 4000)}
LARGE_HW = SIZES_HW["4000x3000"]


def run() -> list[dict[str, Any]]:
    """Time every step.

    Returns:
        One row per step and kind of mask, as ``bench/__main__.py`` describes them.
    """
    rows = []
    for size_name, size_hw in SIZES_HW.items():
        for input_size in (1024, 512):
            sizes = _sizes(input_size, size_hw)
            logits = _logits(input_size, noise=0.0)
            rows.append(
                _row(
                    f"upscale {size_name} S={input_size}",
                    partial(upscale, logits, **sizes),
                    "cv2.resize twice",
                    partial(stock.upscale, logits, **sizes),
                )
            )
    for kind, mask in _masks().items():
        full = mask.full()
        rle = mask_to_brush_rle(mask)
        rows += [
            _row(
                f"clean 4000x3000 {kind}",
                partial(remove_specks, mask, min_area_px=MIN_AREA_PX),
                "cv2.connectedComponentsWithStats",
                partial(stock.clean, full, MIN_AREA_PX),
            ),
            _row(
                f"brush RLE 4000x3000 {kind}",
                partial(mask_to_brush_rle, mask),
                "label_studio_sdk mask2rle",
                partial(stock.mask_to_rle, full),
                repeats=3 if kind == "speckled" else REPEATS,
                goal=RLE_GOAL,
            ),
        ]
        if kind == "smooth":
            rows += [
                _row(
                    f"brush RLE decoding 4000x3000 {kind}",
                    partial(brush_rle_to_mask, rle, LARGE_HW),
                    "label_studio_sdk decode_rle",
                    partial(decode_rle, rle),
                ),
                _row(
                    f"polygon 4000x3000 {kind}",
                    partial(mask_to_polygons, mask, tolerance_px=4, max_vertices=200),
                    "cv2.findContours, approxPolyDP",
                    partial(stock.polygons, full.astype(np.uint8)),
                ),
            ]
    for size_name, size_hw in SIZES_HW.items():
        for kind, noise in {"smooth": 0.0, "ragged": 1.0}.items():
            sizes = _sizes(1024, size_hw)
            logits = _logits(1024, noise)
            rows.append(
                _row(
                    f"logits to JSON {size_name} {kind}",
                    partial(_our_json, logits, **sizes),
                    "OpenCV, label_studio_sdk (no cleaning)",
                    partial(_stock_json, logits, **sizes),
                )
            )
    return rows


def _row(
    name: str,
    ours: Callable[[], object],
    peer_name: str,
    peer: Callable[[], object],
    *,
    repeats: int = REPEATS,
    goal: float | None = None,
) -> dict[str, Any]:
    ours_times, peer_times = alternate((ours, peer), repeats)
    return {
        "name": name,
        "ours_ms": ours_times.median_ms,
        "p95_ms": ours_times.p95_ms,
        "peer": peer_name,
        "peer_ms": peer_times.median_ms,
        "goal": goal,
    }


# What is measured: one object that covers a fifth of the image


def _sizes(input_size: int, original_size_hw: tuple[int, int]) -> dict[str, Any]:
    height, width = original_size_hw
    scale = input_size / max(height, width)
    return {
        "input_size": input_size,
        "input_size_hw": (int(height * scale + 0.5), int(width * scale + 0.5)),
        "original_size_hw": original_size_hw,
    }


def _logits(input_size: int, noise: float) -> npt.NDArray[np.float32]:
    """A wavy blob in the part of the low-res map that holds a 4:3 image; noise tears its edge."""
    side = input_size // 4
    y, x = np.mgrid[:side, :side] / side
    angle, radius = np.arctan2(y - 0.375, x - 0.5), np.hypot(y - 0.375, x - 0.5)
    edge = 60 * (0.24 + 0.03 * np.sin(5 * angle) - radius)
    edge += noise * np.random.default_rng(0).normal(size=edge.shape)
    logits: npt.NDArray[np.float32] = edge.astype(np.float32)
    return logits


def _masks() -> dict[str, WindowedMask]:
    """Masks of a 4000x3000 image: as decoded, torn at the edge, one pixel in fifty flipped."""
    sizes = _sizes(1024, LARGE_HW)
    smooth = upscale(_logits(1024, noise=0.0), **sizes)
    flipped = np.random.default_rng(0).random(LARGE_HW) < 0.02
    return {
        "smooth": smooth,
        "ragged": upscale(_logits(1024, noise=1.0), **sizes),
        "speckled": WindowedMask.from_full(smooth.full() ^ flipped),
    }


def _our_json(logits: npt.NDArray[np.float32], **sizes: Any) -> str:
    mask = remove_specks(upscale(logits, **sizes), min_area_px=MIN_AREA_PX)
    return json.dumps(mask_to_brush_rle(mask))


def _stock_json(logits: npt.NDArray[np.float32], **sizes: Any) -> str:
    return json.dumps(stock.mask_to_rle(stock.upscale(logits, **sizes)))
