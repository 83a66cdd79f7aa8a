"""A mask that is too ragged for Label Studio, made plainer until its brush RLE is short enough.

An outline costs bytes, not an area: an object in a photo of 4000x3000 pixels has 14,000 of them
(median of the default model's masks), a decoder's chessboard close to two million. Such a mask
comes back with every later click on the task, is drawn anew at every stroke, and freezes the page.
It stands after ``clean.py``, for the few masks that need it.

What goes first is what nobody would miss: islands and holes, the small ones before the larger.
What may still be too long then (a comb, a maze) loses the narrow gaps along its rows, and with all
of them gone one run is left in each row.
"""

from __future__ import annotations

from edgesam_core.clean import remove_specks
from edgesam_core.rle import brush_rle_bytes
from edgesam_core.windowed_mask import WindowedMask

FLOOR_GROWS = 8
GAP_GROWS = 2


def make_plainer(mask: WindowedMask, *, max_rle_bytes: int, min_area_px: int) -> WindowedMask:
    """The mask, or a plainer one where its brush RLE would be longer than allowed.

    Args:
        mask: Cleaned with the same ``min_area_px``; returned as it is if it is short enough.
        max_rle_bytes: Byte values in the RLE. The answer keeps to it unless one run in every row
            is still too much.
        min_area_px: Floor from which islands and holes are looked at, in pixels of the original.
    """
    floor_px = max(min_area_px, 1)
    while brush_rle_bytes(mask) > max_rle_bytes and floor_px < mask.area:
        floor_px *= FLOOR_GROWS
        mask = remove_specks(mask, min_area_px=floor_px)
    gap_px = 1
    while brush_rle_bytes(mask) > max_rle_bytes and gap_px < mask.runs.size_hw[1]:
        gap_px *= GAP_GROWS
        runs = mask.runs.close_gaps(gap_px)
        mask = WindowedMask(runs, mask.x0, mask.y0, mask.original_size_hw)
    return mask
