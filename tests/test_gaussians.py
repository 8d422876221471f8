"""Closed forms between Gaussians: beside the formula, and beside large samples."""

from __future__ import annotations

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.errors import ArgumentError
from keodrift.gaussians import gaussian_one_sided_drift, gaussian_sinkhorn_drift


def law(seed: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, d, generator=draw, dtype=torch.float64)
    eye = torch.eye(d, dtype=torch.float64)
    return torch.randn(d, generator=draw, dtype=torch.float64), factor @ factor.T / d + 0.3 * eye


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_they_are_the_formulas(d, tau):
    q, p = law(0, d), law(1, d)
    z = torch.randn(7, d, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = ref.gaussian_barycentre(z, *q, *p, tau) - ref.gaussian_barycentre(z, *q, *q, tau)
    assert torch.allclose(gaussian_sinkhorn_drift(z, q, p, tau), expected, atol=1e-10)
    expected = ref.gaussian_one_sided(z, *p, tau) - ref.gaussian_one_sided(z, *q, tau)
    assert torch.allclose(gaussian_one_sided_drift(z, q, p, tau), expected, atol=1e-10)


def test_large_samples_come_near_them():
    q, p = law(0, 2), law(1, 2)
    draw = torch.Generator().manual_seed(3)
    x, y = (
        m + torch.randn(4000, 2, generator=draw, dtype=torch.float64) @ torch.linalg.cholesky(s).T
        for m, s in (q, p)
    )
    z = x[:200]
    for drift, truth in (
        (kd.SinkhornDrift(1.0), gaussian_sinkhorn_drift),
        (kd.OneSidedDrift(1.0, mask_self=False), gaussian_one_sided_drift),
    ):
        expected = truth(z, q, p, 1.0)
        assert float((drift.fit(x, y)(z) - expected).norm() / expected.norm()) <= 0.1


def test_what_has_no_closed_form_is_refused():
    flat = torch.zeros(2), torch.zeros(2, 2)
    round_ = torch.zeros(2), torch.eye(2)
    with pytest.raises(ArgumentError, match="q: got a covariance"):
        gaussian_sinkhorn_drift(torch.zeros(1, 2), flat, round_, 1.0)
    with pytest.raises(ArgumentError, match="tau"):
        gaussian_one_sided_drift(torch.zeros(1, 2), round_, round_, 0.0)
