from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesam_core.preprocess import (
    MEAN_RGB,
    STD_RGB,
    normalise_and_pad,
    preprocess,
    resize,
    resized_size_hw,
)


@pytest.mark.parametrize("name", ["landscape", "portrait"])
def test_the_input_equals_the_reference(shared: Path, parity_inputs: ModuleType, name: str) -> None:
    image = parity_inputs.IMAGES[name]()
    expected = np.load(shared / "parity" / "encoder.npz")

    resized = resize(image, 1024)
    at = parity_inputs.sample_index("resized", resized.size)
    np.testing.assert_array_equal(resized.reshape(-1)[at], expected[f"{name}.resized"])

    x, input_size_hw = preprocess(image, 1024)
    at = parity_inputs.sample_index("input", x.size)
    assert x.shape == (1, 3, 1024, 1024)
    # One unit in the last place of a value of about 2: the reference divides in the same order.
    assert np.abs(x.reshape(-1)[at] - expected[f"{name}.input"]).max() <= 2.4e-7
    assert input_size_hw == resized.shape[:2]


def test_sizes_round_as_in_the_reference(shared: Path) -> None:
    reference = json.loads((shared / "parity" / "training_eval_reference.json").read_text())
    for size, (height, width) in reference["resize_shapes"].items():
        rows, columns = map(int, size.split("x"))
        # The reference answers 0 for a side of less than half a pixel; we keep one pixel.
        assert resized_size_hw((rows, columns), 1024) == (max(1, height), max(1, width))


def test_every_level_of_every_channel_is_normalised_by_its_own_mean_and_deviation() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    x = normalise_and_pad(ramp, 64)[0, :, :16, :16]
    for channel, (mean, std) in enumerate(zip(MEAN_RGB, STD_RGB, strict=True)):
        expected = (np.arange(256) - np.float64(mean)) / np.float64(std)
        np.testing.assert_allclose(x[channel].ravel(), expected, atol=1e-6)


def test_the_padding_is_zero_after_normalising_right_and_below_only() -> None:
    x, input_size_hw = preprocess(np.zeros((30, 60, 3), np.uint8), 128)
    assert input_size_hw == (64, 128)
    assert (x[:, :, 64:] == 0).all()
    assert (x[:, :, :64] != 0).all()


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([128, 512, 1024]))
def test_every_size_fits_the_square_and_has_a_pixel(height: int, width: int, size: int) -> None:
    resized = resized_size_hw((height, width), size)
    assert max(resized) == size
    assert min(resized) >= 1


def test_a_line_of_pixels_keeps_one_row() -> None:
    x, input_size_hw = preprocess(np.full((1, 3000, 3), 255, np.uint8), 1024)
    assert input_size_hw == (1, 1024)
    assert (x[0, :, 0] > 2).all()


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(np.zeros((4, 4), np.uint8), id="grey"),
        pytest.param(np.zeros((4, 4, 4), np.uint8), id="with alpha"),
        pytest.param(np.zeros((4, 4, 3), np.float32), id="float"),
    ],
)
def test_an_array_that_is_no_rgb_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        preprocess(image, 128)
