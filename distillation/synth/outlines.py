"""An outline in its unit frame, and its anti-aliased coverage of the pixels of a scene.

Which outlines there are is in ``shapes.py``; what fills them in ``textures.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from distillation.synth.canvas import Coverage

Ring = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outline:
    """A shape in its unit frame.

    Attributes:
        rings: Each [N, 2] float32, (x, y). Even-odd: a ring inside another cuts a hole.
        width: 0.0 for filled rings; otherwise the rings are open lines of this width (unit frame).
    """

    rings: tuple[Ring, ...]
    width: float = 0.0


def rasterise(
    outline: Outline,
    scene_size: int,
    *,
    centre_xy: tuple[float, float],
    radius_px: float,
    aspect: float = 1.0,
    angle: float = 0.0,
) -> Coverage | None:
    """Place an outline in a scene.

    Args:
        outline: The shape.
        scene_size: Side of the square scene in pixels.
        centre_xy: Where the unit frame's origin lands, in pixels of the scene; may lie outside.
        radius_px: Pixels per unit of the unit frame along x.
        aspect: The unit frame's y is scaled by this before turning.
        angle: Turn in radians.

    Returns:
        The coverage inside the frame, or None where nothing of it is in the frame.
    """
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = radius_px * np.array([[cosine, sine], [-sine * aspect, cosine * aspect]])
    rings = [r @ turn + centre_xy for r in outline.rings]
    width_px = max(outline.width * radius_px, 1.6) if outline.width else 0.0
    margin = width_px / 2 + 1
    every = rings[0] if len(rings) == 1 else np.concatenate(rings)
    low, high = every.min(axis=0) - margin, every.max(axis=0) + margin
    x0, y0 = (min(max(int(v), 0), scene_size) for v in low.tolist())
    x1, y1 = (min(max(int(v) + 1, 0), scene_size) for v in high.tolist())
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    fine = 4 if max(x1 - x0, y1 - y0) <= 64 else 2
    paper = np.zeros(((y1 - y0) * fine, (x1 - x0) * fine), np.uint8)
    # OpenCV counts from the centre of a pixel, in sixteenths here; ours counts from its corner.
    points = [np.rint(((r - (x0, y0)) * fine - 0.5) * 16).astype(np.int32) for r in rings]
    if width_px:
        cv2.polylines(paper, points, False, 255, max(round(width_px * fine), 1), shift=4)
    else:
        cv2.fillPoly(paper, points, 255, shift=4)
    while len(paper) > y1 - y0:  # halving is OpenCV's quick way
        half = (paper.shape[1] // 2, paper.shape[0] // 2)
        paper = cv2.resize(paper, half, interpolation=cv2.INTER_AREA)
    return Coverage(paper, x0, y0)
