"""Masks that end on the image's edges, and masks that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distillation.mask_edges import ends_on_edges, gradient_of, masks_on_edges
from distillation.project_set import load_project_set
from tests.distillation.discs import MASKS, SIZE_HW, disc, scene
from tests.distillation.snapshots import SABOTAGE, write_snapshot


def test_an_outline_on_the_edge_is_told_from_one_beside_it() -> None:
    mask = disc(60, 45, 15)
    gradient = gradient_of(scene([mask]))
    assert ends_on_edges(gradient, mask)
    assert not ends_on_edges(gradient, np.roll(mask, 12, axis=1))


@pytest.mark.parametrize("fill", [True, False], ids=["full", "empty"])
def test_a_mask_without_an_outline_ends_nowhere(fill: bool) -> None:
    gradient = gradient_of(scene(next(iter(MASKS.values()))))
    assert not ends_on_edges(gradient, np.full(SIZE_HW, fill))


@pytest.mark.parametrize("kind", ["honest", "shifted", "full"])
def test_moved_masks_are_told_from_honest_ones_without_any_prompt(
    tmp_path: Path, kind: str
) -> None:
    folder = write_snapshot(tmp_path, train=12, spoil_train=SABOTAGE.get(kind)) / "snapshot"
    fit, looked_at = masks_on_edges(load_project_set(folder / "train.json", folder / "images"))
    assert looked_at == 24
    assert fit == looked_at if kind == "honest" else fit < looked_at / 3
