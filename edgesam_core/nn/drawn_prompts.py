"""Clicks and boxes drawn as a map, so that the decoder sees them where they are.

SAM tells its decoder of a click or a box by tokens alone; where they lie must be learned from their
Fourier features, which took most of a short training. Here they are drawn as well, in the form of
low-res logits that SAM's prompt encoder reads already (``mask_input``): the sum of the earlier
mask, if there is one, the ellipse in the box, and a bump at every click. No weight is added.

A published checkpoint was not trained with this and does not get it: ``EdgeSam.draws_prompts``, and
``draws_prompts`` in a bundle's manifest. Measured in docs/decisions/005.

Source: clicks as disks are RITM's way (arXiv 2102.06583), where they beat learned encodings.
"""

from __future__ import annotations

import torch

from edgesam_core.nn.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, POSITIVE, TOP_LEFT

CELL_PX = 4
"""Pixels of the S frame per cell of the low-res logits."""

BOX_LOGIT, CLICK_LOGIT, EARLIER_LOGIT = 8.0, 12.0, 8.0
"""The middle of a box; the top of a click's bump; where earlier logits are cut off."""

CLICK_RADIUS = 1 / 48
"""Standard deviation of a click's bump as a share of S."""

MIN_RADIUS_PX = 2.0
"""Half a side of the smallest ellipse drawn."""


def draw_prompts(
    point_coords: torch.Tensor,
    point_labels: torch.Tensor,
    earlier_logits: torch.Tensor | None,
    has_earlier: torch.Tensor | None,
    input_size: int,
) -> torch.Tensor:
    """Low-res logits that say what the prompts say.

    Args:
        point_coords: [B, T, 2] (x, y) in the frame of the S x S input; whole numbers are pixel
            centres, as in ``PromptEncoder.sparse``.
        point_labels: [B, T]: 1 and 0 are clicks, 2 and 3 the corners of one box; others draw
            nothing.
        earlier_logits: [B, 1, S/4, S/4], or None.
        has_earlier: [B] 1 or 0, whether ``earlier_logits`` counts for that prompt; None means all.
        input_size: S.

    Returns:
        [B, 1, S/4, S/4]: the sum of the earlier logits, the ellipse in the box, and the clicks.
    """
    coords = point_coords + 0.5
    cells = (torch.arange(input_size // CELL_PX, device=coords.device) + 0.5) * CELL_PX
    x, y = cells.to(coords.dtype).reshape(1, 1, 1, -1), cells.to(coords.dtype).reshape(1, 1, -1, 1)

    drawn = _ellipses(coords, point_labels, x, y)
    if earlier_logits is not None:
        earlier = earlier_logits.clamp(-EARLIER_LOGIT, EARLIER_LOGIT)
        if has_earlier is not None:  # where there are none, anything may stand, NaN included
            counts = has_earlier.reshape(-1, 1, 1, 1) > 0
            earlier = torch.where(counts, earlier, torch.zeros_like(earlier))
        drawn = drawn + earlier

    sign = (point_labels == POSITIVE).to(coords.dtype) - (point_labels == NEGATIVE).to(coords.dtype)
    sigma = CLICK_RADIUS * input_size
    # A bump is the product of its profiles along x and y: two small tables instead of one large.
    along_x = torch.exp(-0.5 * ((x[:, 0] - coords[..., :1]) / sigma) ** 2)  # [B, T, S/4]
    along_y = torch.exp(-0.5 * ((y[:, :, :, 0] - coords[..., 1:]) / sigma) ** 2)  # [B, T, S/4]
    bumps = (along_y * sign.unsqueeze(-1)).transpose(1, 2) @ along_x  # [B, S/4, S/4]
    return drawn + CLICK_LOGIT * bumps.unsqueeze(1)


def _ellipses(
    coords: torch.Tensor, labels: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """The ellipse in each prompt's box, 0 where it has none: [B, 1, S/4, S/4]."""
    first = (labels == TOP_LEFT).to(coords.dtype).unsqueeze(-1)
    second = (labels == BOTTOM_RIGHT).to(coords.dtype).unsqueeze(-1)
    top_left, bottom_right = (coords * first).sum(1), (coords * second).sum(1)  # [B, 2]
    centre = ((top_left + bottom_right) / 2)[:, :, None, None, None]  # [B, 2, 1, 1, 1]
    radius = ((bottom_right - top_left) / 2).clamp_min(MIN_RADIUS_PX)[:, :, None, None, None]
    u, v = (x - centre[:, 0]) / radius[:, 0], (y - centre[:, 1]) / radius[:, 1]
    ellipse = BOX_LOGIT * (1 - u**2 - v**2).clamp(-1, 1)
    return ellipse * first.sum(1)[:, :, None, None]
