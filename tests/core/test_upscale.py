from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_core.clean import remove_specks
from edgesam_core.rle import mask_to_brush_rle
from edgesam_core.upscale import upscale


def input_size_hw(input_size, original_size_hw):
    scale = input_size / max(original_size_hw)
    return tuple(max(1, int(side * scale + 0.5)) for side in original_size_hw)


def random_logits(seed, side, *, smoothness, bias=0.0):
    """Noise, averaged ``smoothness`` times with its neighbours, then scaled to about 1."""
    logits = np.random.default_rng(seed).normal(size=(side, side))
    for _ in range(smoothness):
        for axis in (0, 1):
            logits = logits + np.roll(logits, 1, axis) + np.roll(logits, -1, axis)
    return (logits / np.abs(logits).max() + bias).astype(np.float32)


def dense_reference(logits, input_size, input_size_hw, original_size_hw):
    """The two resizes as matrices in float64: logits at the original size."""

    def matrix(outputs, inputs):
        source = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
        return np.maximum(1 - np.abs(source[:, None] - np.arange(inputs)), 0)

    vertical, horizontal = (
        matrix(original, cut) @ matrix(input_size, side)[:cut]
        for original, cut, side in zip(original_size_hw, input_size_hw, logits.shape, strict=True)
    )
    return vertical @ logits.astype(np.float64) @ horizontal.T


@pytest.mark.parametrize("smoothness", [0, 3, 40], ids=lambda n: f"smoothed {n} times")
@pytest.mark.parametrize("input_size", [1024, 512])
@pytest.mark.parametrize(
    "original_size_hw",
    [
        pytest.param((900, 1200), id="1200x900"),
        pytest.param((3000, 4000), id="4000x3000"),
        pytest.param((1024, 1024), id="1024x1024, nothing to resize"),
        pytest.param((77, 100), id="100x77, smaller than the input frame"),
        pytest.param((500, 1), id="one pixel wide"),
        pytest.param((1, 500), id="one pixel high"),
        pytest.param((2000, 30), id="a strip"),
        pytest.param((1, 1), id="one pixel"),
    ],
)
def test_the_mask_is_the_official_one(original_size_hw, input_size, smoothness):
    torch = pytest.importorskip("torch", reason="the official up-scaling needs torch")
    logits = random_logits(7, input_size // 4, smoothness=smoothness)
    cut = input_size_hw(input_size, original_size_hw)

    def resize(x, size):
        return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)

    in_frame = resize(torch.from_numpy(logits)[None, None], (input_size, input_size))
    official = (resize(in_frame[..., : cut[0], : cut[1]], original_size_hw) > 0)[0, 0].numpy()
    mask = upscale(
        logits, input_size=input_size, input_size_hw=cut, original_size_hw=original_size_hw
    ).full()
    # torch computes positions in float32, of which 4000 pixels leave four decimals.
    assert np.count_nonzero(mask != official) <= 1e-5 * mask.size + 1
    if official.any():
        assert (mask & official).sum() >= 0.9999 * (mask | official).sum()


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    low_res_side=st.integers(1, 13),
    samples_per_cell=st.integers(1, 5),
    original_size_hw=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    smoothness=st.integers(0, 3),
    bias=st.floats(-1, 1),
)
def test_no_pixel_differs_from_dense_interpolation(
    seed, low_res_side, samples_per_cell, original_size_hw, smoothness, bias
):
    logits = random_logits(seed, low_res_side, smoothness=smoothness, bias=bias)
    input_size = low_res_side * samples_per_cell
    cut = input_size_hw(input_size, original_size_hw)
    sizes = {
        "input_size": input_size,
        "input_size_hw": cut,
        "original_size_hw": original_size_hw,
    }
    reference = dense_reference(logits, **sizes)
    mask = upscale(logits, **sizes).full()
    differs = mask != (reference > 0)
    assert np.abs(reference[differs]).max(initial=0) < 1e-5


def test_a_logit_of_exactly_zero_is_outside():
    """Along the row: 1, 0, -1, 0, 1, the zeros exactly on pixels."""
    logits = np.array([[1, 0, -1, 0, 1]], np.float32).repeat(5, axis=0)
    mask = upscale(logits, input_size=5, input_size_hw=(5, 5), original_size_hw=(5, 5)).full()
    assert mask[0].tolist() == [True, False, False, False, True]


def test_positive_everywhere_fills_the_image_and_nowhere_leaves_it_empty():
    ones = np.ones((64, 64), np.float32)
    sizes: dict[str, Any] = {
        "input_size": 256,
        "input_size_hw": (192, 256),
        "original_size_hw": (300, 400),
    }
    assert upscale(ones, **sizes).full().all()
    assert upscale(-ones, **sizes).area == 0
    assert upscale(0 * ones, **sizes).area == 0


def test_what_lies_in_the_padding_is_cut_off():
    logits = np.full((64, 64), -1, np.float32)
    logits[52:] = 1
    sizes: dict[str, Any] = {
        "input_size": 256,
        "input_size_hw": (192, 256),
        "original_size_hw": (300, 400),
    }
    assert upscale(logits, **sizes).area == 0


def test_the_window_stays_close_to_a_small_object():
    logits = np.full((256, 256), -1, np.float32)
    logits[100:104, 50:54] = 1
    mask = upscale(
        logits, input_size=1024, input_size_hw=(768, 1024), original_size_hw=(3000, 4000)
    )
    assert 0 < mask.area == mask.window.sum()
    assert max(mask.window.shape) < 100


def test_a_small_object_costs_what_it_covers_however_large_the_image_is():
    """From logits to bytes, on 800 million pixels."""
    logits = np.full((256, 256), -1, np.float32)
    logits[60:64, 50:54] = 1
    sizes: dict[str, Any] = {
        "input_size": 1024,
        "input_size_hw": (512, 1024),
        "original_size_hw": (20000, 40000),
    }
    tracemalloc.start()
    mask = remove_specks(upscale(logits, **sizes), min_area_px=64)
    rle = mask_to_brush_rle(mask)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(mask.runs.size_hw) < 1000
    assert len(rle) > 1000
    assert peak_bytes < 16e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"input_size_hw": (0, 64)}, "input_size_hw", id="no rows in the input frame"),
        pytest.param({"input_size_hw": (65, 64)}, "input_size_hw", id="larger than the frame"),
        pytest.param({"input_size": 60}, "sides that divide 60", id="not a multiple"),
        pytest.param({"original_size_hw": (0, 5)}, "original_size_hw", id="no image"),
        pytest.param({"logits": np.full((16, 16), np.nan, np.float32)}, "finite", id="NaN"),
        pytest.param({"logits": np.zeros((1, 16, 16), np.float32)}, "shape", id="a batch"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    arguments = {
        "logits": np.ones((16, 16), np.float32),
        "input_size": 64,
        "input_size_hw": (48, 64),
        "original_size_hw": (300, 400),
    } | change
    with pytest.raises(ValueError, match=message):
        upscale(arguments.pop("logits"), **arguments)
