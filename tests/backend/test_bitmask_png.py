from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backend.bitmask_png import bitmask_png
from edgesam_core.windowed_mask import WindowedMask


def alpha_of(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    image.verify()
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    assert pixels.shape[2] == 4
    assert not pixels[..., :3].any()
    return pixels[..., 3]


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 0.1, 0.5, 1]),
)
def test_any_mask_is_drawn_exactly(height: int, width: int, seed: int, share: float) -> None:
    full = np.random.default_rng(seed).random((height, width)) < share
    mask = WindowedMask.from_full(full)
    assert np.array_equal(alpha_of(bitmask_png(mask)), full * 255)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(slice(700, 760), id="middle"),
        pytest.param(slice(0, 3), id="top"),
        pytest.param(slice(-1, None), id="bottom"),
    ],
)
def test_blank_parts_of_more_than_a_block_are_right(rows: slice) -> None:
    full = np.zeros((1500, 1100), dtype=np.bool_)  # 6.6 MB of RGBA
    full[rows, 200:900] = True
    assert np.array_equal(alpha_of(bitmask_png(WindowedMask.from_full(full))), full * 255)
