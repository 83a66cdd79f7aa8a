"""Low-res logits to the mask at the image's own size.

The official way (REFERENCE.md section 5): up-scale the logits bilinearly to the S x S input frame,
cut the padding off, resize bilinearly to the original, threshold at 0. For a 4000x3000 image that
is twelve million floats, of which only the sign is wanted. Here no pixel is ever interpolated:

1. Down the columns, both resizes are done as they are: at most H rows of S/4 numbers.
2. Along a row, the second resize draws straight lines between the samples of the input frame, so
   the mask can change only between two samples of different sign, and where the line crosses zero
   follows from the two. Those places are looked for only in cells whose neighbourhood is mixed.
3. The pixels between two crossings are filled.

Resizing with bilinear weights never invents a sign: where all neighbours agree, so does the result.
It stands between ``candidates.py`` and ``clean.py`` in a click's path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from edgesam_core.arrays import LogitsMap, SizeHW, check_shape
from edgesam_core.runs import Integers, paint_toggles
from edgesam_core.windowed_mask import WindowedMask

RowLogits = Annotated[npt.NDArray[np.float32], "[R, w] rows of the original, low-res columns"]


def upscale(
    low_res_logits: LogitsMap,
    *,
    input_size: int,
    input_size_hw: SizeHW,
    original_size_hw: SizeHW,
) -> WindowedMask:
    """Where the up-scaled logits are positive.

    Equals bilinear interpolation (``align_corners=False``, no antialiasing) to
    ``input_size`` x ``input_size``, cut to ``input_size_hw``, bilinear to ``original_size_hw``,
    ``> 0``. Differences are rounding: pixels whose logit is zero to six digits.

    Args:
        low_res_logits: [h, w] float32 of the square, padded input; ``input_size`` is a multiple
            of h and w (4 times, for SAM's decoder).
        input_size: S, side of the input frame in pixels.
        input_size_hw: (height, width) of the resized image within the input frame.
        original_size_hw: (height, width) of the image in pixels, after EXIF.

    Returns:
        The mask in a window that holds all of it.

    Raises:
        ValueError: The sizes do not fit each other, or a logit is not finite.

    Source:
        segment-anything, ``Sam.postprocess_masks``.
    """
    _check(low_res_logits, input_size, input_size_hw, original_size_hw)
    height, width = original_size_hw
    samples_per_cell = input_size // low_res_logits.shape[1]

    positive_columns = np.flatnonzero((low_res_logits > 0).any(axis=0))
    if len(positive_columns) == 0:
        return WindowedMask.empty(original_size_hw)
    # Two columns of margin: one that a crossing next to a positive column depends on, and one
    # that is not positive either, so that no cell at the cut is mixed.
    first_column = max(int(positive_columns[0]) - 2, 0)
    columns = low_res_logits[:, first_column : int(positive_columns[-1]) + 3]

    ys, row_logits = _resize_rows(columns, input_size, input_size_hw[0], height)
    rows, sources, falling = _zero_crossings(
        row_logits, first_column, samples_per_cell, input_size_hw[1]
    )
    # A pixel is positive only if its logit is above zero: one that lies exactly on a crossing
    # belongs to the outside, on both flanks of an object.
    positions = (sources + 0.5) * (width / input_size_hw[1]) - 0.5
    xs = np.where(falling, np.ceil(positions), np.floor(positions) + 1).astype(np.int64)

    begins = np.flatnonzero(row_logits[:, 0] > 0)  # rows that are positive from the image's edge
    rows, xs = np.append(rows, begins), np.append(xs, np.zeros_like(begins))
    ends = np.flatnonzero(np.bincount(rows, minlength=len(ys)) % 2)  # ... and to the other edge
    rows, xs = np.append(rows, ends), np.append(xs, np.full_like(ends, width))
    return _fill(ys[rows], xs, original_size_hw)


def _check(
    low_res_logits: LogitsMap, input_size: int, input_size_hw: SizeHW, original_size_hw: SizeHW
) -> None:
    check_shape(low_res_logits, (None, None), "low_res_logits")
    if any(side < 1 or input_size % side for side in low_res_logits.shape):
        raise ValueError(
            f"low_res_logits: expected sides that divide {input_size}, got {low_res_logits.shape}"
        )
    if not all(1 <= side <= input_size for side in input_size_hw):
        raise ValueError(f"input_size_hw: expected 1..{input_size}, got {input_size_hw}")
    if min(original_size_hw) < 1:
        raise ValueError(f"original_size_hw: expected at least 1x1, got {original_size_hw}")
    if not np.isfinite(low_res_logits).all():
        raise ValueError("low_res_logits: expected finite numbers, got NaN or infinity")


@dataclass(frozen=True, eq=False)
class _Taps:
    """Which two inputs each output of a bilinear resize mixes, and in what proportion."""

    lower: Integers
    upper: Integers
    fraction: npt.NDArray[np.float64]

    @classmethod
    def of(cls, outputs: int, inputs: int) -> _Taps:
        """Taps with half-pixel centres (``align_corners=False``), clamped at both ends."""
        source = np.maximum((np.arange(outputs) + 0.5) * (inputs / outputs) - 0.5, 0)
        lower = np.minimum(source.astype(np.int64), inputs - 1)
        return cls(lower, np.minimum(lower + 1, inputs - 1), source - lower)

    def __getitem__(self, chosen: Integers | slice) -> _Taps:
        return _Taps(self.lower[chosen], self.upper[chosen], self.fraction[chosen])

    def mix(self, rows: RowLogits) -> RowLogits:
        fraction = self.fraction.astype(np.float32)[:, None]
        mixed: RowLogits = rows[self.lower] * (1 - fraction) + rows[self.upper] * fraction
        return mixed


def _resize_rows(
    columns: RowLogits, input_size: int, input_height: int, height: int
) -> tuple[Integers, RowLogits]:
    """Both resizes down the columns, for those rows of the original that can hold the mask.

    Returns:
        [R] the rows of the original, ascending, and their logits [R, w].
    """
    in_frame = _Taps.of(input_size, len(columns))[:input_height].mix(columns)
    highest = in_frame.max(axis=1)
    taps = _Taps.of(height, input_height)
    ys = np.flatnonzero((highest[taps.lower] > 0) | (highest[taps.upper] > 0))
    return ys, taps[ys].mix(in_frame)


def _zero_crossings(
    row_logits: RowLogits, first_column: int, samples_per_cell: int, input_width: int
) -> tuple[Integers, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Where each row's logits, in the input frame, cross zero.

    Args:
        row_logits: [R, w], a cut out of the low-res columns.
        first_column: Low-res column of the cut's first column.
        samples_per_cell: Input-frame samples per low-res column (4).
        input_width: Samples beyond this one are padding.

    Returns:
        Sorted by row and position: [K] index of the row; [K] position in samples of the input
        frame (0 is the centre of the first); [K] True where the logits fall, False where they rise.
    """
    neighbours = np.pad(row_logits, ((0, 0), (1, 1)), mode="edge")
    positive = neighbours > 0
    changes = positive[:, 1:] != positive[:, :-1]
    row, column = np.nonzero(changes[:, 1:] | changes[:, :-1])
    left_to_right = [neighbours[row, column + offset] for offset in range(3)]

    # A cell holds the samples around its low-res column and the first one of the next cell; each
    # sample mixes the column with its left or right neighbour by distance.
    sample_offsets = (np.arange(samples_per_cell + 1) + 0.5) / samples_per_cell - 0.5
    weights = np.maximum(1 - np.abs(sample_offsets - np.array([[-1.0], [0.0], [1.0]])), 0)
    samples = np.stack(left_to_right, axis=1) @ weights.astype(np.float32)

    sample_is_positive = samples > 0
    cell, step = np.nonzero(sample_is_positive[:, 1:] != sample_is_positive[:, :-1])
    left = samples[cell, step].astype(np.float64)
    right = samples[cell, step + 1].astype(np.float64)
    sample = (first_column + column[cell]) * samples_per_cell + step
    inside = sample + 1 < input_width
    crossings = sample + left / (left - right)
    return row[cell][inside], crossings[inside], left[inside] > 0


def _fill(ys: Integers, xs: Integers, original_size_hw: SizeHW) -> WindowedMask:
    """The mask that changes at these pixels, an even number of times in every row."""
    if len(xs) == 0 or xs.min() == xs.max():
        return WindowedMask.empty(original_size_hw)
    x0, x1 = int(xs.min()), int(xs.max())
    y0, y1 = int(ys.min()), int(ys.max()) + 1
    toggles = np.sort((ys - y0) * (x1 - x0) + (xs - x0))
    return WindowedMask(paint_toggles(toggles, (y1 - y0, x1 - x0)), x0, y0, original_size_hw)
