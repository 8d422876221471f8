"""Dense float64 references: the formulas as they are printed, with every pair in memory.

Nothing here is shared with the package. Potentials are in units of τ, so that a half-step is
minus a log-sum-exp; all functions accept leading batch axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Cost = Callable[[Tensor, Tensor], Tensor]


def student(x, y):
    """A custom cost: log(1 + ‖x−y‖²), written for tensors and LazyTensors alike."""
    return (1 + ((x - y) ** 2).sum(-1)).log()


def lopsided(x, y):
    """A custom cost that is not symmetric: moving out costs more than moving in."""
    return ((1.5 * x - y) ** 2).sum(-1) + (1 + (y**2).sum(-1)).log()


COSTS: dict[str, Cost] = {
    "half_squared": lambda x, y: ((x - y) ** 2).sum(-1) / 2,
    "squared": lambda x, y: ((x - y) ** 2).sum(-1),
    "euclidean": lambda x, y: ((x - y) ** 2).sum(-1).sqrt(),
    "student": student,
    "lopsided": lopsided,
}
OWN = {"student": student, "lopsided": lopsided}  # what a user would hand over


def pairs(x: Tensor, y: Tensor, cost: str) -> Tensor:
    """C_ij, ``(…, N, M)``, float64."""
    return COSTS[cost](x.double().unsqueeze(-2), y.double().unsqueeze(-3))


def gradients(x: Tensor, y: Tensor, cost: str) -> Tensor:
    """∇_x C(x_i, y_j), ``(…, N, M, d)``; 0 where the distance has none."""
    difference = x.double().unsqueeze(-2) - y.double().unsqueeze(-3)
    square = (difference**2).sum(-1, keepdim=True)
    if cost == "half_squared":
        return difference
    if cost == "squared":
        return 2 * difference
    if cost == "lopsided":
        return 3 * (1.5 * x.double().unsqueeze(-2) - y.double().unsqueeze(-3))
    if cost == "euclidean":
        return torch.where(square > 0, difference / square.clamp_min(1e-300).sqrt(), 0.0)
    return 2 * difference / (1 + square)


def mean_cost(x: Tensor, y: Tensor, cost: str) -> float:
    return float(pairs(x, y, cost).mean())


def log_kernel(x: Tensor, y: Tensor, cost: str, tau: float, mask: bool = False) -> Tensor:
    """−C/τ; −∞ where i = j if masked."""
    logits = -pairs(x, y, cost) / tau
    if mask:
        logits.diagonal(0, -2, -1).fill_(-torch.inf)
    return logits


def log_mass(x, y, bias, cost, tau, mask=False) -> Tensor:
    return torch.logsumexp(log_kernel(x, y, cost, tau, mask) + bias.unsqueeze(-2), -1)


def softmax(logits: Tensor) -> Tensor:
    """Rows of softmax; zeros for a row without atoms."""
    return torch.where(torch.isneginf(logits), 0.0, torch.softmax(logits, -1))


def barycentre(x, y, bias, cost, tau, mask=False, values=None) -> Tensor:
    rows = softmax(log_kernel(x, y, cost, tau, mask) + bias.unsqueeze(-2))
    return rows @ (y if values is None else values).double()


def normalised(weights: Tensor | None, points: Tensor) -> Tensor:
    if weights is None:
        weights = torch.ones(points.shape[:-1])
    weights = weights.double()
    return weights / weights.sum(-1, keepdim=True)


@dataclass
class Problem:
    """Clouds and weights: particles x (a), data y (b), model cloud z = [x; u] or [x′; u] (c)."""

    x: Tensor
    y: Tensor
    z: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    cost: str
    tau: float
    mask: bool
    own: bool  # whether z begins with the particles themselves
    drawn: int  # how many points of z are no extra negatives


def count(weights: Tensor) -> Tensor:
    """Points of weight 0 are not there."""
    return (weights > 0).sum(-1, keepdim=True).double()


def problem(
    x,
    y,
    tau,
    *,
    cost="half_squared",
    mask=False,
    a=None,
    b=None,
    u=None,
    w=None,
    model=None,
    m=None,
):
    """A model point counts c_i, an extra negative w/K: w is relative to one of K equal ones."""
    x, y = x.double(), y.double()
    a, b = normalised(a, x), normalised(b, y)
    z, c = (x, a) if model is None else (model.double(), normalised(m, model))
    drawn = z.shape[-2]
    if u is not None:
        w = torch.ones(u.shape[:-1]) if w is None else w
        c = torch.cat([c, w.double() / count(c)], -1)
        z = torch.cat([z, u.double()], -2)
        c = c / c.sum(-1, keepdim=True)
    own = model is None
    return Problem(x, y, z, a, b, c, cost, tau, mask and own, own, drawn)


@dataclass
class Field:
    """V(z) = m⁺(T⁺(z) − z) − m⁻(T⁻(z) − z), from the biases of the data and the model cloud."""

    p: Problem
    data: Tensor
    model: Tensor
    velocity: str = "barycentric"
    joint: tuple[Tensor, Tensor] | None = None  # log multiplicities of y and z
    floor: float = 0.0

    def __call__(self, q: Tensor | None = None) -> Tensor:
        p = self.p
        at_particles = q is None
        mask = p.mask and at_particles
        q = p.x if q is None else q.double()
        data = log_kernel(q, p.y, p.cost, p.tau) + self.data.unsqueeze(-2)
        model = log_kernel(q, p.z, p.cost, p.tau, mask) + self.model.unsqueeze(-2)
        if self.joint is None:
            return self._pull(q, p.y, softmax(data)) - self._pull(q, p.z, softmax(model))
        rows = torch.logaddexp(
            log_mass(q, p.y, self.joint[0], p.cost, p.tau),
            log_mass(q, p.z, self.joint[1], p.cost, p.tau, mask),
        )
        # A = K/√(r_i c_j); a row counts at least once in its own columns, as in the algorithm: it
        # adds what is missing of its K to c_j. Floored pointwise, except where there is no pair.
        missing = (1 - p.a * count(p.a)).clamp_min(0) if at_particles else torch.ones(1)
        couplings = []
        for block, bias, counts in (
            (data, self.data, self.joint[0]),
            (model, self.model, self.joint[1]),
        ):
            columns = (2 * (counts - bias)).masked_fill(torch.isneginf(bias), 0).unsqueeze(-2)
            kernel = (block - bias.unsqueeze(-2)).nan_to_num(nan=-torch.inf)
            grown = torch.logaddexp(columns, kernel + missing.log()[..., None]) - columns
            a = (block - rows[..., None] / 2 - grown / 2).exp()
            a = torch.where(torch.isneginf(block), 0.0, a)
            couplings.append(torch.where(a > 0, a.clamp_min(self.floor), 0.0) if self.floor else a)
        s_plus, s_minus = (a.sum(-1, keepdim=True) for a in couplings)
        if self.floor:
            plus, minus = couplings[0] / s_plus, couplings[1] / s_minus
        else:
            plus, minus = softmax(data), softmax(model)
        return s_plus * s_minus * (self._pull(q, p.y, plus) - self._pull(q, p.z, minus))

    def _pull(self, q: Tensor, points: Tensor, rows: Tensor) -> Tensor:
        """Σ_j P_ij (y_j − q_i), or −Σ_j P_ij ∇C; a row without atoms pulls nowhere."""
        if self.velocity == "gradient":
            step = -gradients(q, points, self.p.cost)
        else:
            step = points.unsqueeze(-3) - q.unsqueeze(-2)
        return (rows.unsqueeze(-1) * step).sum(-2)


def one_sided(p: Problem, velocity="barycentric") -> Field:
    return Field(p, p.b.log(), p.c.log(), velocity)


def _columns(p: Problem, log_a: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ_i a_i K(x_i, ·) on data and model cloud; 0 for a column without particles."""
    data = torch.logsumexp(log_kernel(p.x, p.y, p.cost, p.tau) + log_a[..., None], -2)
    model = torch.logsumexp(log_kernel(p.x, p.z, p.cost, p.tau, p.mask) + log_a[..., None], -2)
    return data, torch.where(torch.isneginf(model), 0.0, model)


def two_sided(p: Problem, velocity="barycentric") -> Field:
    data, model = _columns(p, p.a.log())
    return Field(p, p.b.log() - data / 2, p.c.log() - model / 2, velocity)


def joint(p: Problem, velocity="barycentric", floor: float | None = None) -> Field:
    """Algorithm 2 of Deng et al.: every point counts as many times as its weight says."""
    data, model = _columns(p, (p.a * count(p.a)).log())
    b = (p.b * count(p.b)).log()
    drawn = p.c[..., : p.drawn]
    c = (p.c / drawn.sum(-1, keepdim=True) * count(drawn)).log()
    return Field(p, b - data / 2, c - model / 2, velocity, (b, c), floor or 0.0)


def half_steps(logits: Tensor, a: Tensor, b: Tensor, t: int) -> Tensor:
    """g/τ after t − 1 half-steps from g = 0; the t-th is the softmax of the barycentre."""
    g = torch.zeros_like(b)
    for _ in range((t - 1) // 2):
        f = -torch.logsumexp(logits + (b.log() + g).unsqueeze(-2), -1)
        f = torch.where(torch.isinf(f), 0.0, f)
        g = -torch.logsumexp(logits + (a.log() + f).unsqueeze(-1), -2)
        g = torch.where(torch.isinf(g), 0.0, g)
    return g


def converged(logits: Tensor, a: Tensor, b: Tensor, sweeps: int = 3000) -> Tensor:
    """g/τ by brute force, until a sweep moves the potential by rounding alone.

    Slow problems (unbatched, positive weights) are finished by Newton's method on the semi-dual,
    whose Hessian is diag(c) − Pᵀ diag(a) P with P the row-normalised plan and c its columns.
    """
    g = torch.zeros_like(b)
    for _ in range(sweeps):
        f = -torch.logsumexp(logits + (b.log() + g).unsqueeze(-2), -1)
        new = -torch.logsumexp(logits + (a.log() + f).unsqueeze(-1), -2)
        moved = float((new - g).abs().max())
        g = new
        if moved < 1e-14 * (1 + float(g.abs().max())):
            return g
    largest = float(logits[torch.isfinite(logits)].abs().max())
    for _ in range(30):
        rows = torch.softmax(logits + b.log() + g, -1)
        columns = a @ rows
        if float((columns - b).abs().sum()) < 1e-13 + 1e-15 * largest:
            return g
        hessian = torch.diag(columns) - rows.mT @ (a[:, None] * rows)
        # Potentials are free up to a constant, which b bᵀ pins down.
        g = g + torch.linalg.solve(hessian + torch.outer(b, b), b - columns)
    raise RuntimeError("the reference did not converge")


def symmetric(logits: Tensor, a: Tensor) -> Tensor:
    """f/τ of the self problem: f ← ½(f + S f), which halves its error whatever τ."""
    f = torch.zeros_like(a)
    for _ in range(100):
        f = (f - torch.logsumexp(logits + (a.log() + f).unsqueeze(-2), -1)) / 2
    return f


def sinkhorn(p: Problem, t: int | None = None, velocity="barycentric") -> Field:
    data = log_kernel(p.x, p.y, p.cost, p.tau)
    model = log_kernel(p.x, p.z, p.cost, p.tau, p.mask)
    if t is None:
        own = p.own and p.z.shape == p.x.shape and not p.mask and p.cost != "lopsided"
        g = converged(data, p.a, p.b)
        h = symmetric(model, p.a) if own else converged(model, p.a, p.c)
    else:
        g, h = half_steps(data, p.a, p.b, t), half_steps(model, p.a, p.c, t)
    return Field(p, p.b.log() + g, p.c.log() + h, velocity)


def passes_to(logits: Tensor, a: Tensor, b: Tensor, tol: float, cap: int = 100_000) -> int:
    """Half-steps that plain alternation from g = 0 needs, the barycentre's included."""
    g = torch.zeros_like(b)
    for passes in range(1, cap, 2):
        if float(column_error(logits, a, b, b.log() + g)) <= tol:
            return passes
        f = -torch.logsumexp(logits + (b.log() + g).unsqueeze(-2), -1)
        g = -torch.logsumexp(logits + (a.log() + f).unsqueeze(-1), -2)
    return cap


def column_error(logits: Tensor, a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """L1 error of the column marginal of the row-normalised plan."""
    plan = a.unsqueeze(-1) * torch.softmax(logits + bias.unsqueeze(-2), -1)
    return (plan.sum(-2) - b).abs().sum(-1)


def transport(x: Tensor, y: Tensor, a: Tensor, b: Tensor, cost: str, tau: float) -> Tensor:
    """OT_τ = ⟨a, f⟩ + ⟨b, g⟩ at the optimum."""
    logits = log_kernel(x, y, cost, tau)
    g = symmetric(logits, a) if x is y and cost != "lopsided" else converged(logits, a, b)
    f = -torch.logsumexp(logits + (b.log() + g).unsqueeze(-2), -1)
    return tau * ((a * f).sum(-1) + (b * g).sum(-1))


def divergence(x, y, tau, *, cost="half_squared", a=None, b=None) -> Tensor:
    """S_τ = OT(q, p) − ½ OT(q, q) − ½ OT(p, p)."""
    x, y = x.double(), y.double()
    a, b = normalised(a, x), normalised(b, y)
    return (
        transport(x, y, a, b, cost, tau)
        - transport(x, x, a, a, cost, tau) / 2
        - transport(y, y, b, b, cost, tau) / 2
    )


def root(matrix: Tensor) -> Tensor:
    """Symmetric square root."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


def gaussian_barycentre(x, m1, s1, m2, s2, tau) -> Tensor:
    """T(x) between N(m1, s1) and N(m2, s2) at optimality, half squared cost."""
    half = root(s1)
    eye = torch.eye(len(s1), dtype=s1.dtype)
    g = half @ root(4 * half @ s2 @ half + tau**2 * eye) @ torch.linalg.inv(half) / 2
    g = g - tau / 2 * eye
    return m2 + (x - m1) @ torch.linalg.inv(s1) @ g


def gaussian_one_sided(x, m, s, tau) -> Tensor:
    """T(x) = m + S(S + τI)⁻¹(x − m)."""
    eye = torch.eye(len(s), dtype=s.dtype)
    return m + (x - m) @ torch.linalg.inv(s + tau * eye) @ s


def logit_scale(p: Problem) -> float:
    """Largest C/τ of a problem: what one unit of rounding is multiplied by in a logit."""
    return max(float(pairs(p.x, other, p.cost).max()) / p.tau for other in (p.y, p.z))


def spread(*clouds: Tensor) -> float:
    """Largest distance between points: what an error of softmax weights is multiplied by."""
    points = torch.cat([c.double().reshape(-1, c.shape[-1]) for c in clouds])
    return float(torch.cdist(points, points).max())


def tolerance(p: Problem, dtype=torch.float64, passes: int = 1) -> float:
    """Bound on |V − V_ref|: eps × logit scale in every softmax weight, times the spread.

    A half-step is 1-Lipschitz in the sup norm, so rounding adds up pass by pass. The factor 8 is
    for the few roundings in a logit (difference, square, sum, product) on both sides of V.
    """
    eps = torch.finfo(dtype).eps
    return 8 * eps * passes * (1 + logit_scale(p)) * spread(p.x, p.y, p.z)


def with_mask(p: Problem, mask: bool) -> Problem:
    return replace(p, mask=mask)
