"""Muon: momentum whose every matrix is made orthogonal before it is applied.

All directions of a layer move equally far, those with small gradients, too, which a network that
starts from nothing is short of. Paired runs of the default recipe (same batches, same start) are in
LOG.md. Vectors, tables and depthwise filters are AdamW's, in the same optimiser.

Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024),
kellerjordan.github.io/posts/muon; the step's length is Moonshot AI's (arXiv 2502.16982), so that
AdamW's learning rate and weight decay fit. ``torch.optim.Muon`` refuses convolutions.
"""

from __future__ import annotations

from typing import Any, cast

import torch

MOMENTUM = 0.95
"""Nesterov's, of the gradient."""

RMS = 0.2
"""Root mean square of an update per unit of learning rate, about AdamW's."""

SMALLEST_SIDE = 16
"""Smaller matrices are left to AdamW."""


class Muon(torch.optim.AdamW):
    """AdamW for all groups but those with ``orthogonal: True``, whose tensors are matrices."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; a matrix's gradient is gone afterwards, so that AdamW passes over it."""
        for group in self.param_groups:
            if group.get("orthogonal"):
                for matrix in group["params"]:
                    if matrix.grad is not None:
                        self._turn(matrix, group["lr"], group["weight_decay"])
                        matrix.grad = None
        return super().step(closure)

    def _turn(self, matrix: torch.Tensor, learning_rate: float, weight_decay: float) -> None:
        gradient = cast("torch.Tensor", matrix.grad)
        state = self.state[matrix]
        if not state:  # AdamW looks for "step" in whatever it loads
            state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(matrix))
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalise(gradient.lerp(momentum, MOMENTUM).flatten(1))
        matrix.mul_(1 - learning_rate * weight_decay)
        length = RMS * max(update.shape) ** 0.5
        matrix.add_(update.view_as(matrix), alpha=-learning_rate * length)


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether a tensor maps channels to channels: a linear layer, or a convolution across them."""
    if parameter.ndim < 2 or parameter.shape[1] == 1:
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= SMALLEST_SIDE


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with all singular values near 1 (0.7 to 1.2): [n, m] -> [n, m].

    Five Newton-Schulz steps in bf16, whose quintic was chosen for speed instead of accuracy.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if is_tall else x).to(matrix.dtype)
