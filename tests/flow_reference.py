"""Further gradient flows in dense form: V at points q of a `reference.Problem`."""

from __future__ import annotations

import numpy as np
import reference as ref
import torch

BANDWIDTHS = (0.3, 1.1)


def proxy(p, q=None, scaling=False, cost="half_squared"):
    n, m = ref.count(p.a), ref.count(p.b)
    drawn = p.c[..., : p.drawn]
    a, b, c = p.a * n, p.b * m, p.c / drawn.sum(-1, keepdim=True) * ref.count(drawn)
    sides = []
    for points, weights, mask, factor in (
        (p.y, b, False, (n / m).sqrt() if scaling else 1.0),
        (p.z, c, p.mask, torch.ones(1)),
    ):
        columns = (ref.log_kernel(p.x, points, cost, p.tau, mask).exp() * a[..., None]).sum(-2)
        at = p.x if q is None else q
        k = ref.log_kernel(at, points, cost, p.tau, mask and q is None).exp()
        rows = (k * weights[..., None, :]).sum(-1, keepdim=True)
        plan = k * weights[..., None, :] / (rows * columns[..., None, :]).sqrt()
        sides.append((plan * (factor if scaling else 1.0), points))
    (plus, y), (minus, z) = sides
    s_plus, s_minus = plus.sum(-1, keepdim=True), minus.sum(-1, keepdim=True)
    return s_minus * (plus @ y) - s_plus * (minus @ z)


def slope(function, q):
    q = q.clone().requires_grad_()
    return torch.autograd.grad(function(q).sum(), q)[0]


def distances(q, points):
    return torch.cdist(q, points, compute_mode="donot_use_mm_for_euclid_dist")


KERNELS = {
    "gaussian": lambda r: (-(r**2) / 2).exp(),
    "laplacian": lambda r: (-r).exp(),
    "imq": lambda r: (1 + r**2) ** -0.5,
    "energy": lambda r: -r,
}


def mmd(p, q=None, kernel="gaussian"):
    """∇ of the witness Σ b k(q, y) − Σ c k(q, z), summed over bandwidths."""
    k = KERNELS[kernel]
    units = (1.0,) if kernel == "energy" else BANDWIDTHS

    def witness(at):
        return sum(
            (
                k(distances(at, p.y) / h) @ p.b[..., None]
                - k(distances(at, p.z) / h) @ p.c[..., None]
            )
            for h in units
        )

    return slope(witness, p.x if q is None else q)


def score(p, q=None):
    """τ (∇log p_τ − ∇log q_τ); without a particle's own density where it is masked."""

    def log_ratio(at):
        mask = p.mask and q is None
        towards = torch.logsumexp(
            -(distances(at, p.y) ** 2) / 2 / p.tau + p.b.log()[..., None, :], -1
        )
        logits = -(distances(at, p.z) ** 2) / 2 / p.tau + p.c.log()[..., None, :]
        if mask:
            own = torch.eye(*logits.shape[-2:], dtype=torch.bool)
            logits = logits.masked_fill(own, -torch.inf)
        return towards - torch.logsumexp(logits, -1)

    return p.tau * slope(log_ratio, p.x if q is None else q)


def kl_flow(p, q=None, noise=None):
    at = p.x if q is None else q
    return sum(score(p, at + n) for n in noise) / len(noise)


def sliced(p, q=None, directions=None):
    """Unbatched. Plans on a line by filling from the left; atoms that coincide share a mean."""
    at = p.x if q is None else q
    total = torch.zeros_like(at)
    for theta in directions:
        t, s = (p.z @ theta).numpy().round(12), (p.y @ theta).numpy()
        i, j, a, b = np.argsort(t), np.argsort(s), p.c.numpy().copy(), p.b.numpy().copy()
        moved, mass = dict.fromkeys(t, 0.0), dict.fromkeys(t, 0.0)
        i, j = [k for k in i if a[k] > 0], [k for k in j if b[k] > 0]
        while i and j:
            step = min(a[i[0]], b[j[0]])
            moved[t[i[0]]] += step * s[j[0]]
            mass[t[i[0]]] += step
            a[i[0]] -= step
            b[j[0]] -= step
            i, j = (i[1:], j) if a[i[0]] <= b[j[0]] else (i, j[1:])
        atoms = sorted(k for k in mass if mass[k] > 0)
        shifts = [moved[k] / mass[k] - k for k in atoms]
        total += torch.from_numpy(np.interp((at @ theta).numpy(), atoms, shifts))[:, None] * theta
    return total / len(directions)
