"""Low-res logits to the mask at the image's own size.

The official way (REFERENCE.md section 5): up-scale the logits bilinearly to the S x S input frame,
cut the padding off, resize bilinearly to the original, threshold at 0. For a 4000x3000 image that
is twelve million floats, of which only the sign is wanted. Here no pixel is ever interpolated:

1. Down the columns, the first resize is done as it is: at most S rows of S/4 numbers. The second
   one is done only for cells whose neighbourhood has both signs.
2. Along a row, the second resize draws straight lines between the samples of the input frame, so
   the mask can change only between two samples of different sign, and where the line crosses zero
   follows from the two.
3. What lies between two crossings is a run, and runs are all that the next steps need.

Resizing with bilinear weights never invents a sign: where all neighbours agree, so does the result.
It stands between ``candidates.py`` and ``clean.py`` in a click's path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from edgesam_core.arrays import LogitsMap, SizeHW, check_shape
from edgesam_core.runs import Integers, runs_between
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

    in_frame = _Taps.of(input_size, len(columns))[: input_size_hw[0]].mix(columns)
    taps = _Taps.of(height, input_size_hw[0])
    ys, sources, falling = _zero_crossings(
        *_mixed_cells(in_frame, taps), first_column, samples_per_cell, input_size_hw[1]
    )
    # A pixel is positive only if its logit is above zero: one that lies exactly on a crossing
    # belongs to the outside, on both flanks of an object.
    positions = (sources + 0.5) * (width / input_size_hw[1]) - 0.5
    xs = np.where(falling, np.ceil(positions), np.floor(positions) + 1).astype(np.int64)

    begins = np.flatnonzero(taps.mix(in_frame[:, :1]) > 0)  # positive from the image's edge
    ys, xs = np.append(ys, begins), np.append(xs, np.zeros_like(begins))
    ends = np.flatnonzero(np.bincount(ys, minlength=height) % 2)  # ... and to the other edge
    ys, xs = np.append(ys, ends), np.append(xs, np.full_like(ends, width))
    if len(xs) == 0:
        return WindowedMask.empty(original_size_hw)
    return WindowedMask(runs_between(ys, xs, original_size_hw), 0, 0, original_size_hw).tight()


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

    def __getitem__(self, chosen: slice) -> _Taps:
        return _Taps(self.lower[chosen], self.upper[chosen], self.fraction[chosen])

    def mix(self, rows: RowLogits) -> RowLogits:
        return _between(rows[self.lower], rows[self.upper], self.fraction)


def _between(lower: RowLogits, upper: RowLogits, fraction: npt.NDArray[np.float64]) -> RowLogits:
    """[R, w] logits that lie by ``fraction`` [R] of the way from ``lower`` to ``upper``."""
    weight = fraction.astype(np.float32)[:, None]
    mixed: RowLogits = lower * (1 - weight) + upper * weight
    return mixed


def _mixed_cells(
    in_frame: RowLogits, taps: _Taps
) -> tuple[Integers, Integers, npt.NDArray[np.float32]]:
    """Where, in the rows of the original, a low-res column and its neighbours differ in sign.

    Args:
        in_frame: [R, w] rows of the input frame, low-res columns.
        taps: Which two of those rows each row of the original mixes.

    Returns:
        Sorted by row and column: [K] row of the original; [K] column in the cut; [K, 3] the logits
        in that row of the column's left neighbour, of itself, and of its right neighbour.
    """
    neighbours = np.pad(in_frame, ((0, 0), (1, 1)), mode="edge")
    positive = neighbours > 0
    some = positive[:, :-2] | positive[:, 1:-1] | positive[:, 2:]
    every = positive[:, :-2] & positive[:, 1:-1] & positive[:, 2:]
    # All rows of the original between the same two rows of the frame look at the same cells.
    some[:-1] |= some[1:]
    every[:-1] &= every[1:]
    mixed = some & ~every
    frame_row, column = np.divmod(np.flatnonzero(mixed), mixed.shape[1])
    of_column = np.lib.stride_tricks.sliding_window_view(neighbours, 3, axis=1)  # [R, w, 3]
    above = of_column[frame_row, column]
    under = of_column[np.minimum(frame_row + 1, len(in_frame) - 1), column]

    counts = np.count_nonzero(mixed, axis=1)[taps.lower]  # cells in each row of the original
    first = np.searchsorted(frame_row, taps.lower)
    ys = np.repeat(np.arange(len(counts)), counts)
    cell = np.arange(len(ys)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    return ys, column[cell], _between(above[cell], under[cell], taps.fraction[ys])


def _zero_crossings(
    ys: Integers,
    columns: Integers,
    neighbour_logits: npt.NDArray[np.float32],
    first_column: int,
    samples_per_cell: int,
    input_width: int,
) -> tuple[Integers, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Where each row's logits, in the input frame, cross zero.

    Args:
        ys: [K] row of the original, of each cell.
        columns: [K] low-res column in the cut, of each cell.
        neighbour_logits: [K, 3] of the column and its neighbours (`_mixed_cells`).
        first_column: Low-res column of the cut's first column.
        samples_per_cell: Input-frame samples per low-res column (4).
        input_width: Samples beyond this one are padding.

    Returns:
        Sorted by row and position: [N] row of the original; [N] position in samples of the input
        frame (0 is the centre of the first); [N] True where the logits fall, False where they rise.
    """
    # A cell holds the samples around its low-res column and the first one of the next cell; each
    # sample mixes the column with its left or right neighbour by distance.
    sample_offsets = (np.arange(samples_per_cell + 1) + 0.5) / samples_per_cell - 0.5
    weights = np.maximum(1 - np.abs(sample_offsets - np.array([[-1.0], [0.0], [1.0]])), 0)
    samples = neighbour_logits @ weights.astype(np.float32)

    sample_is_positive = samples > 0
    cell, step = np.nonzero(sample_is_positive[:, 1:] != sample_is_positive[:, :-1])
    left = samples[cell, step].astype(np.float64)
    right = samples[cell, step + 1].astype(np.float64)
    sample = (first_column + columns[cell]) * samples_per_cell + step
    inside = sample + 1 < input_width
    crossings = sample + left / (left - right)
    return ys[cell][inside], crossings[inside], left[inside] > 0
