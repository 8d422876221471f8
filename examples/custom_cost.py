"""Ground costs of one's own: one expression c(x, y), read by every engine.

It receives x (…, N, 1, d) and y (…, 1, M, d), as tensors or as KeOps LazyTensors, and reduces the
last axis to one number a pair.
"""

import torch

import keodrift as kd

generator = torch.Generator().manual_seed(0)
x = torch.nn.functional.normalize(torch.randn(500, 3, generator=generator), dim=-1)
y = torch.nn.functional.normalize(torch.randn(400, 3, generator=generator) + 1, dim=-1)


def cosine(x, y):
    """1 − x·y: on the unit sphere the same as ½‖x−y‖², so the drifts agree."""
    return 1 - (x * y).sum(-1)


def tolerant(x, y, scale):
    """Σ_k scale_k log(1 + |x_k − y_k|): far coordinates count little. The tensor is a parameter."""
    return ((1 + (x - y).abs()).log() * scale).sum(-1)


scaled = kd.Cost("tolerant", tolerant, parameters={"scale": torch.tensor([4.0, 1.0, 0.25])})

for cost in (cosine, scaled, "half_squared"):
    drift = kd.SinkhornDrift(tau=0.1, cost=cost)
    dense, keops = (
        kd.SinkhornDrift(tau=0.1, cost=cost, backend=engine)(x, y) for engine in ("dense", "keops")
    )
    name = cost if isinstance(cost, str) else getattr(cost, "name", "cosine")
    speed = drift(x, y).norm(dim=-1).mean()
    apart = (dense - keops).abs().max()
    print(f"{name:>12}: mean speed {speed:.4f}, engines differ by {apart:.1e}")
