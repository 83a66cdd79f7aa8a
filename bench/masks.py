"""What a mask costs after the decoder, each step beside its peer in the same run.

Peers: OpenCV (float logits resized twice and cut; connected components; contours) and
label-studio-sdk (brush RLE). Both are needed to run this, neither is needed to serve. Calls of the
two sides alternate, so that a busy machine slows both; the medians are reported, and the ratio is
what counts: below 1 we are faster.

    python -m bench.masks
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from label_studio_sdk.converter.brush import decode_rle, mask2rle

from bench.__main__ import table
from edgesam_core.clean import remove_specks
from edgesam_core.polygon import mask_to_polygons
from edgesam_core.rle import brush_rle_to_mask, mask_to_brush_rle
from edgesam_core.upscale import upscale
from edgesam_core.windowed_mask import WindowedMask

REPEATS = 9
MIN_AREA_PX = 64
RLE_LIMIT = 1 / 8
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
                    partial(_opencv_upscale, logits, **sizes),
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
                partial(_opencv_clean, full),
            ),
            _row(
                f"brush RLE 4000x3000 {kind}",
                partial(mask_to_brush_rle, mask),
                "label_studio_sdk mask2rle",
                partial(mask2rle, full.astype(np.uint8) * 255),
                repeats=3 if kind == "speckled" else REPEATS,
                limit=RLE_LIMIT,
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
                    partial(_opencv_polygons, full.astype(np.uint8)),
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
    limit: float | None = None,
) -> dict[str, Any]:
    seconds: dict[Callable[[], object], list[float]] = {ours: [], peer: []}
    for _ in range(repeats + 1):
        for call, times in seconds.items():
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
    # The first round warms both up.
    ours_ms, peer_ms = (1000 * statistics.median(times[1:]) for times in seconds.values())
    return {
        "name": name,
        "ours_ms": round(ours_ms, 2),
        "peer": peer_name,
        "peer_ms": round(peer_ms, 2),
        "ratio": round(ours_ms / peer_ms, 3),
        "limit": limit,
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
    logits = 60 * (0.24 + 0.03 * np.sin(5 * angle) - radius)
    logits += noise * np.random.default_rng(0).normal(size=logits.shape)
    return logits.astype(np.float32)


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


# The stock path


def _our_json(logits: npt.NDArray[np.float32], **sizes: Any) -> str:
    mask = remove_specks(upscale(logits, **sizes), min_area_px=MIN_AREA_PX)
    return json.dumps(mask_to_brush_rle(mask))


def _stock_json(logits: npt.NDArray[np.float32], **sizes: Any) -> str:
    return json.dumps(mask2rle(_opencv_upscale(logits, **sizes).astype(np.uint8) * 255))


def _opencv_upscale(
    logits: npt.NDArray[np.float32],
    *,
    input_size: int,
    input_size_hw: tuple[int, int],
    original_size_hw: tuple[int, int],
) -> npt.NDArray[np.bool_]:
    in_frame = cv2.resize(logits, (input_size, input_size), interpolation=cv2.INTER_LINEAR)
    cut = in_frame[: input_size_hw[0], : input_size_hw[1]]
    height, width = original_size_hw
    mask: npt.NDArray[np.bool_] = (
        np.asarray(cv2.resize(cut, (width, height), interpolation=cv2.INTER_LINEAR)) > 0
    )
    return mask


def _opencv_clean(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """``remove_small_regions`` of segment-anything, holes and islands."""
    for holes in (True, False):
        working = (mask ^ holes).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(working, connectivity=8)
        is_small = stats[:, cv2.CC_STAT_AREA] < MIN_AREA_PX
        is_small[0] = False
        if is_small.any():
            mask = mask ^ is_small[labels]
    return mask


def _opencv_polygons(mask: npt.NDArray[np.uint8]) -> list[Any]:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [cv2.approxPolyDP(contour, 4, closed=True) for contour in contours]


if __name__ == "__main__":
    print(table(run()))
