"""Mask to Label Studio's brush RLE, and back.

Label Studio stores a brush region as the run-length code of its RGBA samples, four equal ones for
each pixel, packed into bits and written as a list of byte values. The encoder here gives the same
bytes as ``label_studio_sdk.converter.brush.mask2rle`` of a 0/255 mask, without a loop over runs.
It is the last step of a click before ``backend/results.py``. COCO's column-wise RLE is another
format and not handled.

The bit stream, most significant bit first:

    32 bits        number of samples, height * width * 4
     5 bits        bits per value - 1 (8 bits)
     4 x 4 bits    the four run sizes - 1, in bits (3, 4, 8 and 16)
    then, until all samples are there:
     1 bit         1: one value, repeated; 0: that many values follow
     2 bits        which of the four run sizes
     run size      count - 1
     8 bits        the value, or count times 8 bits

The SDK's encoder writes repeated values only, each in the shortest size that holds its count, and
ends with one to eight zero bits. The editor also writes the other kind, and any alpha.

Source:
    label_studio_sdk 2.1.2, ``converter/brush.py``; before it thi.ng/umbrella, ``rle-pack``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgesam_core.arrays import Mask, SizeHW
from edgesam_core.errors import PromptError
from edgesam_core.runs import Integers
from edgesam_core.windowed_mask import WindowedMask

CHANNELS = 4
"""Samples per pixel: red, green, blue, alpha."""

VALUE_BITS = 8
RUN_SIZES = np.array([3, 4, 8, 16])
"""Bits for the count of a run; the SDK's choice."""

HEADER_BITS = 32 + 5 + 4 * 4
ALPHA_THRESHOLD = 128
"""Alpha from which a pixel belongs to the mask: the editor's strokes have soft edges."""

DAMAGED = "The brush region's RLE is cut short or damaged. Draw the region again."


def mask_to_brush_rle(mask: WindowedMask) -> list[int]:
    """The brush RLE of a mask, as ``value.rle`` of a Label Studio region holds it.

    Returns:
        Byte values 0..255; the mask's pixels are opaque white, the others transparent black.

    Raises:
        ValueError: The image has a gigapixel or more: its samples do not fit the 32-bit count.

    Source:
        Byte for byte ``label_studio_sdk.converter.brush.mask2rle`` (2.1.2).
    """
    return list(_pack_bits(*_codes(mask)))


def brush_rle_bytes(mask: WindowedMask) -> int:
    """How many byte values `mask_to_brush_rle` would give, without packing them.

    Raises:
        ValueError: As there.
    """
    _, bits = _codes(mask)
    return int(bits.sum()) // 8 + 1


def brush_rle_to_mask(rle: Sequence[int], size_hw: SizeHW) -> Mask:
    """The mask of a brush region, whoever wrote its RLE.

    Args:
        rle: Byte values 0..255, from an SDK, from the editor or from us.
        size_hw: (height, width) in pixels of the image that the region lies on.

    Returns:
        [H, W] bool, True where alpha is at least 128.

    Raises:
        PromptError: The RLE is damaged, or belongs to an image of another size.
    """
    stream = _as_bytes(rle)
    run_sizes = _read_header(stream, size_hw)
    codes = _find_codes(stream, size_hw[0] * size_hw[1] * CHANNELS, run_sizes)
    values, counts = _read_values(stream, codes)
    # Alpha is every fourth sample: so many of them end before the end of each run.
    alphas = np.diff(np.cumsum(counts) // CHANNELS, prepend=0)
    return np.repeat(values >= ALPHA_THRESHOLD, alphas).reshape(size_hw)


# Encoding


def _codes(mask: WindowedMask) -> tuple[Integers, Integers]:
    """Header and runs as numbers, and how many bits each has."""
    height, width = mask.original_size_hw
    sample_count = height * width * CHANNELS
    if sample_count >= 1 << 32:
        raise ValueError(f"brush RLE holds less than 2**30 pixels, got {height}x{width}")
    is_white, lengths = _alternating_runs(mask)
    codes, bits = _run_codes(np.where(is_white, 255, 0), lengths * CHANNELS)

    header = sample_count << 21 | (VALUE_BITS - 1) << 16
    for position, size in enumerate(RUN_SIZES.tolist()):
        header |= (size - 1) << 4 * (3 - position)
    return np.insert(codes, 0, header), np.insert(bits, 0, HEADER_BITS)


def _alternating_runs(mask: WindowedMask) -> tuple[npt.NDArray[np.bool_], Integers]:
    """Runs of the whole image in row-major order, across the ends of rows.

    Returns:
        [N] True for a run inside the mask, [N] its length in pixels, at least 1.
    """
    height, width = mask.original_size_hw
    runs = mask.full_runs()
    row_begins = runs.rows * width
    starts, stops = row_begins + runs.starts, row_begins + runs.stops
    # A run that reaches the right edge goes on in one that begins at the left edge below.
    joints = np.flatnonzero(starts[1:] == stops[:-1])
    toggles = np.stack([np.delete(starts, joints + 1), np.delete(stops, joints)], axis=1).ravel()
    lengths = np.diff(toggles, prepend=0, append=height * width)
    is_white = np.arange(len(lengths)) % 2 == 1
    return is_white[lengths > 0], lengths[lengths > 0]


def _run_codes(values: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """The code of each run and how many bits it has.

    Runs over 65536 samples become several codes; what is left at their end keeps the long form,
    however short it is.
    """
    longest = 1 << int(RUN_SIZES[-1])
    size_index = np.searchsorted(1 << RUN_SIZES[:-1], counts)
    parts = -(-counts // longest)
    code_counts = np.full(parts.sum(), longest)
    code_counts[np.cumsum(parts) - 1] = counts - (parts - 1) * longest
    if len(code_counts) > len(counts):
        size_index, values = np.repeat(size_index, parts), np.repeat(values, parts)
    run_size = RUN_SIZES[size_index]
    # 1 (repeated value), size index, count - 1, value
    codes = ((4 + size_index) << run_size | (code_counts - 1)) << VALUE_BITS | values
    return codes, 3 + run_size + VALUE_BITS


def _pack_bits(codes: Integers, bits: Integers) -> bytes:
    """Codes of different length, one after the other, as bytes.

    Each code lies in one 64-bit word or in two. The codes of a word have no bit in common, so the
    word is their bitwise or; and because no code is longer than a word, every word has a code that
    begins in it, whose predecessors' last bits are or-ed in afterwards.

    Args:
        codes: [N] the bits of each code, right-aligned.
        bits: [N] their number, 1..63.

    Returns:
        The stream with one to eight zero bits at its end, as the SDK has it.
    """
    ends = np.cumsum(bits)
    total_bits = int(ends[-1])
    begins = ends - bits
    word = begins >> 6
    room = 64 - (begins & 63) - bits  # bits left in the word after the code; negative: it spills
    unsigned = codes.astype(np.uint64)
    placed = unsigned << np.maximum(room, 0).astype(np.uint64)
    spills = np.flatnonzero(room < 0)
    placed[spills] >>= (-room[spills]).astype(np.uint64)

    words = np.zeros(total_bits // 64 + 1, ">u8")
    first_of_word = np.flatnonzero(np.diff(word, prepend=-1))
    words[: len(first_of_word)] = np.bitwise_or.reduceat(placed, first_of_word)
    words[word[spills] + 1] |= unsigned[spills] << (64 + room[spills]).astype(np.uint64)
    return words.tobytes()[: total_bits // 8 + 1]


# Decoding


@dataclass(frozen=True, eq=False)
class _Codes:
    """What stands where in a stream.

    Attributes:
        is_repeated: [C] True: one value follows; False: as many as the code has samples.
        counts: [C] samples that the code stands for.
        value_begins: [C] the bit of the stream at which the first value begins.
    """

    is_repeated: npt.NDArray[np.bool_]
    counts: Integers
    value_begins: Integers


def _as_bytes(rle: Sequence[int]) -> bytes:
    try:
        # Not just bytes(rle): of a number it would make that many zeros.
        return bytes(iter(rle))
    except (TypeError, ValueError) as exc:
        raise PromptError(
            "The brush region's RLE is not a list of numbers from 0 to 255. Draw the region again."
        ) from exc


def _read_header(stream: bytes, size_hw: SizeHW) -> list[int]:
    """The four run sizes, after the rest of the header was found to fit the image."""
    if 8 * len(stream) < HEADER_BITS:
        raise PromptError(DAMAGED)
    header = int.from_bytes(stream[:7], "big") >> 56 - HEADER_BITS
    if (header >> 16 & 31) + 1 != VALUE_BITS:
        raise PromptError(DAMAGED)
    height, width = size_hw
    sample_count = header >> 21
    if sample_count != height * width * CHANNELS:
        raise PromptError(
            f"The brush region has {sample_count // CHANNELS} pixels, its image {width}x{height}. "
            "Draw the region again on this image."
        )
    return [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]


def _find_codes(stream: bytes, sample_count: int, run_sizes: list[int]) -> _Codes:
    """Walk the stream from code to code: only the one before tells where the next begins."""
    padded = np.frombuffer(stream + bytes(3), np.uint8).astype(np.int64)
    # The 32 bits that begin at each byte: from any bit of it, enough for a code's 3 + 16 bits.
    window_at = (padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]).tolist()
    stream_bits = 8 * len(stream)
    is_repeated, counts, value_begins = [], [], []
    position, missing = HEADER_BITS, sample_count
    while missing > 0 and position < stream_bits:
        code = window_at[position >> 3] << (position & 7)  # from bit 31 downwards
        repeats = code >> 31 & 1
        size = run_sizes[code >> 29 & 3]
        count = (code >> (29 - size) & ((1 << size) - 1)) + 1
        position += 3 + size
        is_repeated.append(repeats)
        counts.append(count)
        value_begins.append(position)
        position += VALUE_BITS if repeats else VALUE_BITS * count
        missing -= count
    if missing != 0 or position > stream_bits:
        raise PromptError(DAMAGED)
    return _Codes(np.array(is_repeated, np.bool_), np.array(counts), np.array(value_begins))


def _read_values(stream: bytes, codes: _Codes) -> tuple[npt.NDArray[np.uint8], Integers]:
    """All values in order, and how many samples each stands for."""
    value_counts = np.where(codes.is_repeated, 1, codes.counts)
    first_value = np.cumsum(value_counts) - value_counts
    index_in_code = np.arange(value_counts.sum()) - np.repeat(first_value, value_counts)
    bit = np.repeat(codes.value_begins, value_counts) + VALUE_BITS * index_in_code

    padded = np.frombuffer(stream + bytes(1), np.uint8).astype(np.uint16)
    sixteen_bits_at = padded[:-1] << 8 | padded[1:]
    values = (sixteen_bits_at[bit >> 3] >> (8 - (bit & 7)).astype(np.uint16)).astype(np.uint8)
    return values, np.repeat(np.where(codes.is_repeated, codes.counts, 1), value_counts)
