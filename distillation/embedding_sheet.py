"""Embeddings as pictures: how far the student sees what its teacher sees.

256 channels are shown by the three directions in which the teacher's embedding of that photo varies
most, as red, green and blue; the student's is seen along the same directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from edgesam_core.preprocess import MEAN_RGB, STD_RGB

TILE_PX = 192


def draw_embeddings(
    rows: Sequence[tuple[torch.Tensor, ...]],
) -> np.ndarray:
    """A sheet of photo, teacher and student, one row for each photo.

    Args:
        rows: Image [3, S, S] normalised, teacher and student [256, s, s], valid cells [s, s].

    Returns:
        [H, W, 3] uint8 RGB.
    """
    return np.concatenate([np.concatenate(_tiles(*row), axis=1) for row in rows])


def _tiles(
    image: torch.Tensor, teacher: torch.Tensor, student: torch.Tensor, valid: torch.Tensor
) -> list[np.ndarray]:
    photo = image.permute(1, 2, 0).numpy() * STD_RGB + MEAN_RGB
    inside = teacher[:, valid > 0].double()  # [256, cells of the photo]
    mean = inside.mean(dim=1, keepdim=True)
    directions = torch.linalg.svd(inside - mean, full_matrices=False).U[:, :3].T  # [3, 256]
    spread = (directions @ (inside - mean)).std(dim=1, correction=0).reshape(3, 1, 1) + 1e-9
    tiles = [photo]
    for embedding in (teacher, student):
        seen = torch.tensordot(directions, embedding.double() - mean[:, :, None], dims=1)
        colours = 128 + 50 * seen / spread * valid
        tiles.append(colours.permute(1, 2, 0).numpy())
    return [_enlarged(tile.clip(0, 255).astype(np.uint8)) for tile in tiles]


def _enlarged(tile: np.ndarray) -> np.ndarray:
    size = (TILE_PX, TILE_PX)
    return np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.NEAREST))
