"""Fields between Gaussians in closed form: the truth that empirical fields are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from keodrift.checks import check_positive
from keodrift.errors import ArgumentError


def gaussian_sinkhorn_drift(
    z: Tensor, q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor], tau: float
) -> Tensor:
    """The converged Sinkhorn drift of q = N(m₁, S₁) towards p = N(m₂, S₂), cost ½‖x−y‖².

    T_qp(z) = m₂ + Gᵀ S₁⁻¹(z − m₁) with G = ½S₁^½(4S₁^½ S₂ S₁^½ + τ²I)^½ S₁^−½ − ½τI, T_qq the same
    with p = q, and V = T_qp − T_qq.

    Args:
        z: Points, ``(N, d)``.
        q: Mean ``(d,)`` and covariance ``(d, d)`` of the model; S₁ is positive definite.
        p: Mean and covariance of the data.
        tau: Temperature, in squared units of length.

    Returns:
        ``(N, d)``, float64.

    Raises:
        ArgumentError: S₁ is not positive definite, or τ is not positive.

    Source: "Sinkhorn drifting", arXiv 2603.12366; Janati et al., Entropic optimal transport between
    unbalanced Gaussian measures has a closed form, NeurIPS 2020.

    Example:
        >>> q = torch.zeros(1), torch.eye(1)
        >>> gaussian_sinkhorn_drift(torch.zeros(1, 1), q, (torch.ones(1), torch.eye(1)), 0.5)
        tensor([[1.]], dtype=torch.float64)
    """
    check_positive("tau", tau)
    z, (m1, s1), (m2, s2) = _doubles(z, q, p)
    values, vectors = torch.linalg.eigh(s1)
    if not bool((values > 0).all()):
        raise ArgumentError(
            "q", f"a covariance with eigenvalue {values.min():.2g}", "positive ones"
        )
    root = (vectors * values.sqrt()) @ vectors.T
    unroot = (vectors / values.sqrt()) @ vectors.T
    eye = torch.eye(len(s1), dtype=torch.float64, device=z.device)

    def slope(s: Tensor) -> Tensor:
        """GᵀS₁⁻¹, transposed for rows of points."""
        middle = _root(4 * root @ s @ root + tau**2 * eye)
        g = root @ middle @ unroot / 2 - tau / 2 * eye
        return torch.linalg.solve(s1, g)

    return m2 - m1 + (z - m1) @ (slope(s2) - slope(s1))


def gaussian_one_sided_drift(
    z: Tensor, q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor], tau: float
) -> Tensor:
    """The one-sided drift without mask of q = N(m₁, S₁) towards p = N(m₂, S₂), cost ½‖x−y‖².

    T(z) = m + S(S + τI)⁻¹(z − m) on either side, and V = T_p − T_q.

    Args:
        z: Points, ``(N, d)``.
        q: Mean ``(d,)`` and covariance ``(d, d)`` of the model.
        p: Mean and covariance of the data.
        tau: Temperature, in squared units of length.

    Returns:
        ``(N, d)``, float64.

    Raises:
        ArgumentError: τ is not positive.

    Source: "Sinkhorn drifting", arXiv 2603.12366 (barycentre of a Gaussian under a Gaussian
    kernel).

    Example:
        >>> q = torch.zeros(1), torch.eye(1)
        >>> gaussian_one_sided_drift(torch.zeros(1, 1), q, (torch.ones(1), torch.eye(1)), 1.0)
        tensor([[0.5000]], dtype=torch.float64)
    """
    check_positive("tau", tau)
    z, q, p = _doubles(z, q, p)

    def barycentre(mean: Tensor, covariance: Tensor) -> Tensor:
        eye = torch.eye(len(mean), dtype=torch.float64, device=z.device)
        return mean + (z - mean) @ torch.linalg.solve(covariance + tau * eye, covariance)

    return barycentre(*p) - barycentre(*q)


def _doubles(z: Tensor, *laws: tuple[Tensor, Tensor]) -> tuple:
    return z.double(), *((mean.double(), covariance.double()) for mean, covariance in laws)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
