from __future__ import annotations

import itertools
import json

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_core.errors import PromptError
from edgesam_core.rle import brush_rle_to_mask, mask_to_brush_rle
from edgesam_core.windowed_mask import WindowedMask

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@pytest.fixture(scope="module")
def brush():
    """label-studio-sdk's converter."""
    return pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="label-studio-sdk is the reference"
    )


def encode(mask):
    return mask_to_brush_rle(WindowedMask.from_full(mask))


def editor_rle(samples, *, value_bits=8, run_sizes=(3, 4, 8, 16)):
    """What the editor's rle-pack writes: repeated values, and single ones in groups."""
    bits = f"{len(samples):032b}{value_bits - 1:05b}" + "".join(f"{n - 1:04b}" for n in run_sizes)

    def code(is_repeated, count, values):
        index = next(i for i, size in enumerate(run_sizes) if count <= 1 << size)
        body = "".join(f"{value:0{value_bits}b}" for value in values)
        return f"{is_repeated:d}{index:02b}{count - 1:0{run_sizes[index]}b}{body}"

    longest = 1 << run_sizes[-1]
    singles: list[int] = []
    for value, group in itertools.groupby(samples):
        count = len(list(group))
        if count == 1 and len(singles) < longest:
            singles.append(value)
            continue
        if singles:
            bits += code(False, len(singles), singles)
            singles = []
        while count:
            bits += code(True, min(count, longest), [value])
            count -= min(count, longest)
    if singles:
        bits += code(False, len(singles), singles)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@settings(max_examples=300, deadline=None)
@given(mask=MASKS)
def test_bytes_are_those_of_the_sdk(brush, mask):
    assert encode(mask) == brush.mask2rle(mask.astype(np.uint8) * 255)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0, 0.05), width=st.integers(1, 700))
def test_bytes_are_those_of_the_sdk_for_long_and_short_runs(brush, seed, density, width):
    """Runs of every size class, over the ends of rows and over 65536 samples."""
    mask = np.random.default_rng(seed).random((60, width)) < density**2
    mask[40:55] ^= True
    assert encode(mask) == brush.mask2rle(mask.astype(np.uint8) * 255)


@pytest.mark.parametrize("value", [False, True], ids=["empty", "full"])
@pytest.mark.parametrize(
    "size_hw",
    [
        pytest.param((1, 1), id="1x1"),
        pytest.param((7, 13), id="odd sides"),
        pytest.param((128, 128), id="65536 samples"),
        pytest.param((1, 128 * 128 + 1), id="4 samples over a full run"),
        pytest.param((256, 128), id="two full runs"),
        pytest.param((777, 1001), id="48 runs"),
    ],
)
def test_a_mask_of_one_colour_is_that_of_the_sdk(brush, size_hw, value):
    mask = np.full(size_hw, value)
    rle = encode(mask)
    assert rle == brush.mask2rle(mask.astype(np.uint8) * 255)
    assert np.array_equal(brush_rle_to_mask(rle, size_hw), mask)


def test_a_speckled_photo_sized_mask_is_that_of_the_sdk(brush):
    mask = np.random.default_rng(0).random((900, 1200)) < 0.05
    mask[200:600, 300:900] ^= True
    assert encode(mask) == brush.mask2rle(mask.astype(np.uint8) * 255)


def test_a_stream_that_ends_on_a_byte_has_one_more_byte_like_the_sdk():
    # Header and three runs: 53 + 14 + 14 + 15 = 96 bits, 12 whole bytes, 13 written.
    mask = np.array([[False] * 2 + [True] * 2 + [False] * 3])
    assert len(encode(mask)) == 13


@given(MASKS)
def test_decoding_undoes_encoding(mask):
    assert np.array_equal(brush_rle_to_mask(encode(mask), mask.shape), mask)


@given(MASKS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_the_window_makes_no_difference(mask, left, top, right, bottom):
    full = np.pad(mask, ((top, bottom), (left, right)))
    height, width = full.shape
    windows = [
        WindowedMask.from_full(full),
        WindowedMask.from_window(full, 0, 0, (height, width)),
        WindowedMask.from_window(mask, left, top, (height, width)),
    ]
    first, *others = [mask_to_brush_rle(window) for window in windows]
    assert all(other == first for other in others)


def test_the_header_is_what_label_studio_sends():
    rle = encode(np.zeros((480, 640), np.bool_))
    assert rle[:6] == [0, 18, 192, 0, 57, 27]
    assert all(type(value) is int for value in rle)
    assert json.loads(json.dumps(rle)) == rle


@settings(deadline=None)
@given(
    size_hw=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    run_sizes=st.sampled_from([(3, 4, 8, 16), (1, 2, 3, 4), (16, 16, 16, 16), (2, 9, 11, 13)]),
    data=st.data(),
)
def test_any_stream_of_the_editor_is_decoded(size_hw, run_sizes, data):
    height, width = size_hw
    element = st.sampled_from([0, 1, 127, 128, 254, 255])
    samples = data.draw(hnp.arrays(np.uint8, (height, width, 4), elements=element))
    repeats = data.draw(st.integers(1, 9))
    samples = np.repeat(samples, repeats, axis=1)
    rle = editor_rle(samples.ravel().tolist(), run_sizes=run_sizes)
    mask = brush_rle_to_mask(rle, (height, width * repeats))
    assert np.array_equal(mask, samples[:, :, 3] >= 128)


def test_a_soft_brush_edge_is_cut_at_128_of_alpha_whatever_the_colour():
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    samples = np.dstack([np.full((16, 16, 3), 77, np.uint8), alpha])
    mask = brush_rle_to_mask(editor_rle(samples.ravel().tolist()), (16, 16))
    assert np.array_equal(mask, alpha >= 128)


def test_our_decoder_reads_what_the_sdks_decoder_reads(brush):
    rng = np.random.default_rng(3)
    samples = np.repeat(rng.integers(0, 256, 500), rng.integers(1, 40, 500))
    samples = samples[: len(samples) // 40 * 40]
    size_hw = (len(samples) // 40, 10)
    rle = editor_rle(samples.tolist())
    expected = brush.decode_rle(rle).reshape(*size_hw, 4)[:, :, 3] >= 128
    assert np.array_equal(brush_rle_to_mask(rle, size_hw), expected)


def test_the_mask_that_the_real_editor_accepted_is_decoded(shared):
    recorded = json.loads((shared / "label_studio/accepted/brush.json").read_text())
    region = recorded["reply"]["results"][0]["result"][0]
    mask = brush_rle_to_mask(region["value"]["rle"], (480, 640))
    windowed = WindowedMask.from_full(mask)
    assert windowed.window.shape == (106, 106)
    assert windowed.window.all()
    assert mask_to_brush_rle(windowed) == region["value"]["rle"]


GOOD = encode(np.eye(20, dtype=np.bool_))


@pytest.mark.parametrize(
    "rle",
    [
        pytest.param([], id="nothing"),
        pytest.param(GOOD[:5], id="half a header"),
        pytest.param(GOOD[:7], id="header only"),
        pytest.param(GOOD[: len(GOOD) // 2], id="cut in the middle"),
        pytest.param(GOOD[:-2], id="last code cut"),
        pytest.param([256, *GOOD[1:]], id="value over 255"),
        pytest.param([-1, *GOOD[1:]], id="negative value"),
        pytest.param([0.5, *GOOD[1:]], id="fraction"),
        pytest.param(["0", *GOOD[1:]], id="text in the list"),
        pytest.param("AAECAw==", id="text"),
        pytest.param(None, id="null"),
        pytest.param(10**9, id="a number"),
        pytest.param({"rle": GOOD}, id="an object"),
        pytest.param([*GOOD[:4], 0x7B, *GOOD[5:]], id="other bits per value"),
        pytest.param(encode(np.zeros((20, 21), np.bool_)), id="another size"),
        pytest.param([*encode(np.ones((20, 20), np.bool_))[:6], 255, 255, 255, 248], id="too long"),
    ],
)
def test_a_damaged_stream_is_refused_with_a_sentence(rle):
    with pytest.raises(PromptError, match=r"Draw the region again"):
        brush_rle_to_mask(rle, (20, 20))


@given(st.lists(st.integers(0, 255), max_size=60))
def test_random_bytes_end_in_a_mask_or_in_a_sentence(tail):
    try:
        mask = brush_rle_to_mask(GOOD[:7] + tail, (20, 20))
    except PromptError:
        return
    assert mask.shape == (20, 20)


def test_an_image_too_large_for_the_format_is_refused():
    with pytest.raises(ValueError, match="brush RLE"):
        mask_to_brush_rle(WindowedMask.empty((1 << 15, 1 << 15)))
