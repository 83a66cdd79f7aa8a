"""Array types by name, so that a signature says what an array holds.

mypy sees plain NumPy arrays, readers see the shape. S is the bundle's input size (1024 for the
official weights), B a number of prompts, M a number of candidates (1, 3 or 4), N of points.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

ImageRGB = Annotated[npt.NDArray[np.uint8], "[H, W, 3] RGB, EXIF applied"]
InputImage = Annotated[npt.NDArray[np.float32], "[1, 3, S, S] normalised, then zero-padded"]
ImageEmbedding = Annotated[npt.NDArray[np.float32], "[1, 256, S/16, S/16]"]
LowResLogits = Annotated[npt.NDArray[np.float32], "[B, M, S/4, S/4] before the threshold"]
LogitsMap = Annotated[npt.NDArray[np.float32], "[S/4, S/4] one candidate's low-res logits"]
Scores = Annotated[npt.NDArray[np.float32], "[B, M]"]
PointCoords = Annotated[npt.NDArray[np.float32], "[N, 2] (x, y) pixels"]
PointLabels = Annotated[npt.NDArray[np.float32], "[N] 1 positive, 0 negative"]
BoxXYXY = Annotated[npt.NDArray[np.float32], "[4] x0, y0, x1, y1 pixels"]
Mask = Annotated[npt.NDArray[np.bool_], "[H, W]"]

SizeHW = tuple[int, int]
"""(height, width) in pixels."""


def check_shape(array: npt.NDArray[Any], shape: tuple[int | None, ...], name: str) -> None:
    """Refuse an array of another shape; None stands for any length.

    Raises:
        ValueError: With the expected and the actual shape.
    """
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
