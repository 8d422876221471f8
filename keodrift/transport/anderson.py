"""Anderson acceleration of a fixed-point map on potentials, one history a problem."""

from __future__ import annotations

import torch
from torch import Tensor


class Anderson:
    """Extrapolates from the last few residuals of ``g ↦ G(g)`` (Walker & Ni, 2011, type II).

    Args:
        weights: Weights of the residual's norm, ``(…, M)``; zero-weight entries follow along.
        depth: How many differences are remembered.
    """

    def __init__(self, weights: Tensor, depth: int = 8) -> None:
        self.weights, self.depth = weights, depth
        self.last: tuple[Tensor, Tensor] | None = None
        self.residuals: list[Tensor] = []
        self.images: list[Tensor] = []

    def extrapolate(self, g: Tensor, image: Tensor) -> Tensor:
        """The next iterate from ``g`` and its image ``G(g)``."""
        residual = image - g
        # Potentials are defined up to a constant, which must not enter the fit.
        residual = residual - (self.weights * residual).sum(-1, keepdim=True)
        if self.last is not None:
            self.residuals.append(residual - self.last[0])
            self.images.append(image - self.last[1])
            del self.residuals[: -self.depth], self.images[: -self.depth]
        self.last = (residual, image)
        if not self.residuals:
            return image
        steps = torch.stack(self.residuals, -2)
        weighted = steps * self.weights.unsqueeze(-2)
        gram = weighted @ steps.mT
        target = weighted @ residual.unsqueeze(-1)
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        # Relative to the residuals' own rounding; the tiny constant covers empty histories.
        ridge = 1e-10 * diagonal.sum(-1, keepdim=True) + torch.finfo(gram.dtype).tiny ** 0.5
        gram = gram + torch.diag_embed(ridge.expand_as(diagonal))
        # Unchecked, since the check would stall a GPU: a solver takes back what is not finite.
        mixing, _ = torch.linalg.solve_ex(gram, target)
        return image - (torch.stack(self.images, -2) * mixing).sum(-2)

    def forget(self, problems: Tensor) -> None:
        """Empties the history of the flagged problems, ``(…,)``."""
        keep = (~problems)[..., None].to(self.weights.dtype)
        self.residuals = [step * keep for step in self.residuals]
        self.images = [step * keep for step in self.images]
