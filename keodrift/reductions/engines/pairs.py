"""What engines that visit every pair share: about a guess a plain sum, else a running maximum."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from keodrift.reductions.kernel import GibbsKernel, split


class PairKernel(GibbsKernel):
    """Answers the verbs by sums over all atoms, in the dtype of the points.

    What an engine adds works on a bias whose maximum is taken out, ``(B, M)``. All but the plain
    sum are differentiable in the queries.
    """

    @abstractmethod
    def _stable_log_sum(self, bias: Tensor) -> Tensor:
        """``log Σ_j exp(bias_j − c_ij)``, float64 ``(B, N)``; ``-inf`` for a row without atoms."""

    @abstractmethod
    def _stable_average(self, bias: Tensor, values: Tensor) -> Tensor:
        """``Σ_j softmax_j(bias_j − c_ij) values_j``, ``(B, N, v)``; any value without atoms."""

    @abstractmethod
    def _plain_sum(self, bias: Tensor, shift: Tensor, values: Tensor | None = None) -> Tensor:
        """``Σ_j exp(bias_j − shift_i − c_ij) values_j``, ``(B, N, v)``, no graph.

        Without values they are 1 and v = 1.
        """

    def _log_sum(self, bias: Tensor, guess: Tensor | None) -> Tensor:
        found = None if guess is None else self._about(bias, guess, None)
        if found is not None:
            return found[0]
        bias, top = split(bias, self.frame.y.dtype)
        return top + self._stable_log_sum(bias)

    def _average(self, bias: Tensor, values: Tensor | None, guess: Tensor | None) -> Tensor:
        values = self.frame.y if values is None else values
        found = None if guess is None else self._about(bias, guess, values)
        if found is not None:
            return found[1]
        return self._stable_average(split(bias, self.frame.y.dtype)[0], values)

    def _about(
        self, bias: Tensor, guess: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Log-sum ``(B, N)`` and averages about a guess; None where the guess was too far."""
        bias, top = split(bias, self.frame.y.dtype)
        return self._sum_about(bias, top, (guess - top).to(bias.dtype), values)

    def _sum_about(
        self, bias: Tensor, top: Tensor | float, guess: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """The same about a guess in the working dtype, from which ``top`` was taken out."""
        if values is not None:
            values = torch.cat([torch.ones_like(values[..., :1]), values], -1)
        total = self._plain_sum(bias, guess, values)
        mass = total[..., 0]
        if not trusted(mass):
            return None
        return top + guess.double() + mass.double().log(), total[..., 1:] / total[..., :1]


def trusted(mass: Tensor) -> bool:
    """Whether masses of a plain sum are within bounds.

    Beyond them single terms may have overflowed, or underflowed to denormals.
    """
    edge = torch.finfo(mass.dtype).max ** (1 / 3)
    return bool(((mass < edge) & (mass > 1 / edge)).all())
