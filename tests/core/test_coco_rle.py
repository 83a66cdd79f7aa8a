"""Run lengths against pycocotools, which reads them for training."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from edgesam_core.coco_rle import mask_to_coco_rle


def pycocotools(mask: npt.NDArray[np.bool_]) -> dict[str, object]:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_small_mask_is_written_as_pycocotools_does(mask: npt.NDArray[np.bool_]) -> None:
    assert mask_to_coco_rle(mask) == pycocotools(mask)


@pytest.mark.parametrize("is_inside", [False, True], ids=["empty", "full"])
def test_a_mask_of_one_value_is_written_as_pycocotools_does(is_inside: bool) -> None:
    mask = np.full((3000, 4000), is_inside)
    assert mask_to_coco_rle(mask) == pycocotools(mask)


def test_runs_of_every_length_and_falling_ones_are_written_as_pycocotools_does() -> None:
    lengths = np.array([1, 40_000, 3, 900, 70_000, 1, 16, 15, 31, 32, 512, 511, 1_000_000])
    flat = np.repeat(np.arange(len(lengths) + 1) % 2 == 1, [*lengths, 2_000_000 - lengths.sum()])
    mask = flat.reshape(2000, 1000).T
    assert mask_to_coco_rle(mask) == pycocotools(mask)
    assert mask_to_coco_rle(~mask) == pycocotools(~mask)


def test_a_noisy_photo_sized_mask_is_written_as_pycocotools_does() -> None:
    mask = np.random.default_rng(0).random((480, 640)) < 0.3
    assert mask_to_coco_rle(mask) == pycocotools(mask)
