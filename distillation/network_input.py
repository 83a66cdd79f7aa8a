"""Images of a batch as a network wants them: ``edgesam_core.preprocess`` on the device.

Serving resizes one photo with Pillow and normalises it; a training batch is already square and
uint8, so only the second half is left, for all of its images at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from edgesam_core.arrays import SizeHW
from edgesam_core.preprocess import MEAN_RGB, STD_RGB


def normalise(images: torch.Tensor) -> torch.Tensor:
    """[I, 3, S, S] uint8 -> float32 by the reference's mean and deviation, channels last."""
    mean = torch.from_numpy(MEAN_RGB).to(images.device).reshape(1, 3, 1, 1)
    std = torch.from_numpy(STD_RGB).to(images.device).reshape(1, 3, 1, 1)
    return ((images.float() - mean) / std).to(memory_format=torch.channels_last)


def at_size(normalised: torch.Tensor, input_size: int) -> torch.Tensor:
    """The same images for a network with another input: [I, 3, S, S] -> [I, 3, T, T]."""
    if normalised.shape[-1] == input_size:
        return normalised
    return F.interpolate(normalised, size=(input_size, input_size), mode="bilinear", antialias=True)


def zeros_beyond(embedding: torch.Tensor, cells: int) -> torch.Tensor:
    """What was computed of an oblong input, as part of the square: [I, C, h, w] -> [I, C, s, s]."""
    height, width = embedding.shape[-2:]
    return F.pad(embedding, (0, cells - width, 0, cells - height))


def valid_cells(input_sizes_hw: Sequence[SizeHW], input_size: int, cells: int) -> torch.Tensor:
    """Which cells of an embedding show the image and not its padding.

    Args:
        input_sizes_hw: (height, width) of each image inside its input, as ``preprocess`` says.
        input_size: S in pixels.
        cells: s, the side of the embedding.

    Returns:
        [I, s, s] float32: 1 where more than half of the cell is image, else 0.

    Source:
        The code samples a mask of un-padded pixels bilinearly at the cells' centres and keeps what
        is over 0.5, which is the same for cells of an even side.
    """
    stride = input_size / cells
    middle = stride * (torch.arange(cells) + 0.5)
    height, width = torch.tensor(input_sizes_hw).unbind(1)
    rows, columns = middle < height[:, None], middle < width[:, None]  # [I, s]
    return (rows[:, :, None] & columns[:, None]).float()
