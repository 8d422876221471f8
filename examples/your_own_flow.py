"""A gradient flow of one's own: say the first variation, and every part of the library takes it.

F(q) = energy distance to the data + ∫ U dq, with U a hill around the origin that samples avoid.
"""

import torch

import keodrift as kd


def first_variation(x, a, y, b):
    """w(z) = 2(E_y‖z − y‖ − E_x‖z − x‖) + U(z)."""

    def mean_distance(z, points, weights):
        square = (z.unsqueeze(-2) - points.unsqueeze(-3)).square().sum(-1)
        return (weights.unsqueeze(-2) * (square + 1e-12).sqrt()).sum(-1)

    def w(z):
        hill = 3 * torch.exp(-2 * z.square().sum(-1))
        return 2 * (mean_distance(z, y, b) - mean_distance(z, x, a)) + hill

    return w


generator = torch.Generator().manual_seed(0)
x, y = torch.randn(200, 2, generator=generator) - 4, torch.randn(300, 2, generator=generator)
flow = kd.simulate(kd.WitnessDrift(first_variation), x, y, step_size=0.05, steps=200)
for name, points in (("start", x), ("end", flow.final), ("data", y)):
    inside = (points.norm(dim=-1) < 0.7).float().mean()
    print(f"{name:>5}: mean {points.mean(0).tolist()}, within 0.7 of the origin {inside:.1%}")
