"""What holds a coupling to its marginals: constraints, or a price ρ·KL for leaving them.

Potentials are in units of τ and r = ρ/τ. Relaxed half-steps are damped, f = −λ·log-mass with
λ = r/(r + 1), and the coupling's marginals are a·exp(−f/r) and b·exp(−g/r). Everything that λ and r
enter is said here, once for each of the two.

Half-steps alone would find the relaxed coupling's total mass at the rate λ² a sweep, slow where ρ
is large. But the best constant to move from f to g is known in closed form, so every sweep may
begin with it: what is left converges as balanced couplings do, and a constant is of no account.

Source: Chizat, Peyré, Schmitzer & Vialard (2018), "Scaling algorithms for unbalanced optimal
transport problems"; Séjourné, Feydy, Vialard, Trouvé & Peyré (2019), "Sinkhorn divergences for
unbalanced optimal transport", for divergence and values; Séjourné, Vialard & Peyré (2022), "Faster
unbalanced optimal transport: translation invariant Sinkhorn", for the constant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

LARGEST = 700.0  # exponents end here: e^700 is finite in float64
SMALLEST = -700.0

Number = TypeVar("Number", float, Tensor)


class Marginals(ABC, Generic[Number]):
    """How half-steps, dual and errors depend on what holds the marginals.

    Attributes:
        damping: λ, such that a half-step is f = −λ·log-mass; ``(…, 1)`` or one number.
        softness: 1/r = τ/ρ, how much a unit of potential costs in mass; the same.
    """

    damping: Number
    softness: Number

    def potential(self, log_mass: Tensor) -> Tensor:
        """The half-step to a log-mass."""
        return -self.damping * log_mass

    def log_mass(self, potential: Tensor) -> Tensor:
        """The log-mass to a half-step."""
        return -potential / self.damping

    @abstractmethod
    def kept(self, potential: Tensor) -> Tensor:
        """The share of their weight that points of these potentials keep, ``(…, N)``."""

    @abstractmethod
    def shares(self, weights: Tensor, potential: Tensor) -> Tensor:
        """The marginal that belongs to a potential, with sum 1, ``(…, N)``."""

    @abstractmethod
    def dual(self, a: Tensor, f: Tensor, b: Tensor, g: Tensor) -> Tensor:
        """What no half-step lowers, where f is the half-step of g, ``(…,)``."""

    @abstractmethod
    def value(self, dual: Tensor) -> Tensor:
        """The transport cost in units of τ that belongs to a dual."""

    @abstractmethod
    def centred(self, a: Tensor, f: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The dual, and potentials with the best constant, f still the half-step of g."""

    @abstractmethod
    def as_exact(self, weights: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and potential of the same coupling, divided by its mass, as of an exact one."""

    def error(self, b: Tensor, g: Tensor, image: Tensor) -> Tensor:
        """L1 error of the column marginal at g, relative to what belongs to g, ``(…,)``.

        Args:
            b: Weights of the columns.
            g: Their potential.
            image: The column half-step of the row half-step of g.
        """
        off = ((g - image) / self.damping).clamp(max=LARGEST)
        return (self.shares(b, g) * torch.expm1(off).abs()).sum(-1)


class Exact(Marginals[float]):
    """Marginals a and b, ρ = ∞."""

    damping, softness = 1.0, 0.0

    def kept(self, potential: Tensor) -> Tensor:
        """All of it."""
        return torch.ones_like(potential)

    def shares(self, weights: Tensor, potential: Tensor) -> Tensor:
        """The weights themselves."""
        return weights

    def dual(self, a: Tensor, f: Tensor, b: Tensor, g: Tensor) -> Tensor:
        """⟨a, f⟩ + ⟨b, g⟩, the dual value."""
        return (a * f).sum(-1) + (b * g).sum(-1)

    def value(self, dual: Tensor) -> Tensor:
        """The dual value itself."""
        return dual

    def centred(self, a: Tensor, f: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As they are: a constant changes nothing."""
        return self.dual(a, f, b, g), f, g

    def as_exact(self, weights: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
        """As they are."""
        return weights, potential


@dataclass(frozen=True, eq=False)
class Relaxed(Marginals[Tensor]):
    """Marginals at the price ρ·KL.

    Attributes:
        ratio: r = ρ/τ, float64 ``(…, 1)``.
    """

    ratio: Tensor

    @property
    def damping(self) -> Tensor:  # type: ignore[override]
        """λ = r/(r + 1)."""
        return self.ratio / (self.ratio + 1)

    @property
    def softness(self) -> Tensor:  # type: ignore[override]
        """1/r."""
        return 1 / self.ratio

    def kept(self, potential: Tensor) -> Tensor:
        """exp(−f/r)."""
        return (-potential / self.ratio).clamp(max=LARGEST).exp()

    def shares(self, weights: Tensor, potential: Tensor) -> Tensor:
        """Of the mass ⟨b, exp(−g/r)⟩."""
        return self._log_shares(weights, potential).exp()

    def dual(self, a: Tensor, f: Tensor, b: Tensor, g: Tensor) -> Tensor:
        """−(r + 1)·log⟨a, e^(−f/r)⟩ − r·log⟨b, e^(−g/r)⟩.

        It rises with D = −(r + 1)⟨a, expm1(−f/r)⟩ − r⟨b, expm1(−g/r)⟩, the dual value, at the best
        constant, tends to ⟨a, f⟩ + ⟨b, g⟩ with r, and sees changes of a mass however small.
        """
        return self._dual(self._log_kept(a, f), self._log_kept(b, g))

    def value(self, dual: Tensor) -> Tensor:
        """D at the best constant, where both masses are exp(−dual/(2r + 1))."""
        most = 2 * self.ratio[..., 0] + 1
        return -most * torch.expm1((-dual / most).clamp(max=LARGEST))

    def centred(self, a: Tensor, f: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Such that ⟨a, exp(−f/r)⟩ = ⟨b, exp(−g/r)⟩: rows and columns hold the same mass."""
        r, rows, columns = self.ratio, self._log_kept(a, f), self._log_kept(b, g)
        shift = (columns - rows) * (r * (r + 1) / (2 * r + 1))
        return self._dual(rows, columns), f - self.damping * shift, g + shift

    def as_exact(self, weights: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
        """Shares a′ and a potential f′ with a′·exp(f′) = a·exp(f)/√mass."""
        half = self._log_kept(weights, potential) / 2
        log_shares = self._log_shares(weights, potential).clamp_min(SMALLEST)
        alive = weights > 0
        shares = torch.where(alive, log_shares.exp(), 0.0)
        return shares, torch.where(alive, weights.log() + potential - half - log_shares, potential)

    def _dual(self, rows: Tensor, columns: Tensor) -> Tensor:
        """From the logarithms of the masses that rows and columns keep, ``(…, 1)``."""
        return (-(self.ratio + 1) * rows - self.ratio * columns)[..., 0]

    def _log_shares(self, weights: Tensor, potential: Tensor) -> Tensor:
        return torch.log_softmax(weights.log() - potential / self.ratio, -1)

    def _log_kept(self, weights: Tensor, potential: Tensor) -> Tensor:
        """The logarithm of Σ_i a_i exp(−f_i/r), ``(…, 1)``, to the digits of f where r is large.

        About the mean exponent the sum is at least 1, so that nothing cancels under the logarithm.
        Weights of sum 1 count as such: the rounding of their sum would be multiplied by r.
        """
        exponents = -potential / self.ratio
        total = weights.sum(-1, keepdim=True)
        shares = weights / total
        centre = (shares * exponents).sum(-1, keepdim=True)
        off = (exponents - centre).masked_fill_(shares == 0, 0)
        largest = (off + shares.log()).amax(-1, keepdim=True)
        above = (largest - LARGEST / 2).clamp_(min=0)  # what would overflow
        terms = shares * torch.expm1((off - above).clamp_(max=LARGEST))
        level = torch.where(total > 1 - 1e-12, 0.0, total.log())
        return centre + level + above + terms.sum(-1, keepdim=True).log1p_()
