"""Random calls at every size, scale and temperature: what is not refused must be answered.

    python benchmarks/fuzz.py calls=3000 fits=300
    python benchmarks/fuzz.py only=1234 seed=0
    python benchmarks/fuzz.py calls=0 fits=300 large=true

A call fails if its inputs are valid and its result is not finite (what float64 finds beyond the
result's dtype may be infinite in it), has another shape, dtype or device than promised, or if an
input was changed, or if it raises anything but an `ArgumentError`.
A fit fails if a coupling reports a smaller marginal error than it has: the L1 error of the columns
of its row-normalised plan (relaxed: of the plan with its rows, relative to its mass), formed
densely in float64 from the same points and potentials. The
rounding of the points' dtype, 4·eps·(1 + mean logit of the plan), is allowed, and 2e-5 or 2e-9 more
for cells. The exit status is 1 after a failure; ``only=`` does one call again, ``only_fit=`` one
fit, and shows the traceback.
"""

from __future__ import annotations

import math
import random
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from common import begin
from torch import Tensor
from tqdm.auto import tqdm

import keodrift as kd
from keodrift.costs import Cost, as_cost
from keodrift.reductions.engines.cells.kernel import ACCURACY, Cells
from keodrift.reductions.engines.tiled import Tiled

SETTINGS = {
    "calls": 100_000,
    "fits": 1000,
    "seed": 0,
    "seconds": 0.0,  # of calls, and of fits, at most; 0 for no limit
    "keops": False,  # adds the KeOps engine in three dimensions
    "large": False,  # adds fits of 20 000 points
    "only": -1,
    "only_fit": -1,
}
SHOWN = 5  # failures of one kind that are printed
HALF = (torch.float16, torch.bfloat16)
KEOPS_DIMENSIONS = (1, 2, 5)
CELLS = Cells(otherwise=Tiled())  # compiles nothing


def lengths(x: Any, y: Any) -> Any:
    """A symmetric cost of no known curvature: ℓ1."""
    return (x - y).abs().sum(-1)


def uphill(x: Any, y: Any) -> Any:
    """An asymmetric cost: one way costs three times the other."""
    return ((x - y).abs() * 2 + (x - y)).sum(-1)


OWN = (lengths, Cost("uphill", uphill))
COSTS = ("half_squared", "squared", "euclidean", *OWN)


@dataclass
class Case:
    """One random call, and all that is random about it."""

    action: str
    drift: kd.SoftmaxDrift
    x: Tensor
    y: Tensor
    z: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = {k: tuple(v.shape) for k, v in self.tensors().items()}
        reach = float(torch.cat([self.x.flatten(), self.y.flatten()]).double().abs().max())
        return (
            f"{self.action} of {self.drift}, {self.x.dtype}, coordinates up to {reach:.1e}, "
            f"{shapes}, {self.options}"
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything a call is given."""
        return {"x": self.x, "y": self.y, "z": self.z, **self.inputs}


class Dice(random.Random):
    """Random numbers and tensors of one case."""

    def __init__(self, *seeds: object) -> None:
        super().__init__("/".join(map(str, seeds)))
        self.generator = torch.Generator().manual_seed(self.getrandbits(62))

    def chance(self, share: float) -> bool:
        return self.random() < share

    def power(self, low: float, high: float) -> float:
        """A number from 10^low to 10^high, all magnitudes alike."""
        return 10 ** self.uniform(low, high)

    def size(self, most: int) -> int:
        return round(self.power(0, math.log10(most)))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def integers(self, below: int, n: int) -> Tensor:
        return torch.randint(below, (n,), generator=self.generator)

    def cloud(self, batch: tuple[int, ...], n: int, d: int) -> Tensor:
        points = self.normal(*batch, n, d)
        kind = self.choice(["normal", "normal", "modes", "duplicates", "coinciding"])
        if kind == "modes":
            return points / 100 + self.power(-1, 2) * (self.rand(*batch, n, 1) < 0.5)
        if kind == "duplicates":
            return points[..., self.integers(n // 2 + 1, n), :]
        return points[..., :1, :].expand_as(points).clone() if kind == "coinciding" else points

    def weights(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        kind = self.choice(["plain", "zeros", "one", "tiny", "huge", "wide"])
        w = self.rand(*shape)
        if kind == "plain":
            return w.to(dtype)
        if kind in ("zeros", "one"):
            w = w * (self.rand(*shape) < 0.5) if kind == "zeros" else torch.zeros_like(w)
            w[..., self.randrange(shape[-1])] = 0.5
            return w
        return {"tiny": 1e-300 * w, "huge": 1e300 * w, "wide": 10 ** (600 * w - 300)}[kind]


def draw_drift(dice: Dice, d: int, keops: bool) -> kd.SoftmaxDrift:
    """Any drift at temperature 1."""
    cost, mask = dice.choice(COSTS), dice.chance(0.5)
    velocity = dice.choice(["barycentric", "gradient"])
    engines = ["auto", "dense", "tiled"]
    if d <= 3 and as_cost(cost).curvature is not None and not mask:
        engines += [CELLS] * 2
    if keops and d in KEOPS_DIMENSIONS:
        engines += ["keops"] * 2
    how: dict[str, Any] = {
        "tau": 1.0,
        "cost": cost,
        "mask_self": mask,
        "velocity": velocity,
        "backend": dice.choice(engines),
    }
    kind = dice.choice(["one-sided", "split", "joint", "floored", "fixed", "solved", "solved"])
    if kind == "one-sided":
        return kd.OneSidedDrift(**how)
    if kind == "floored":
        how |= {"velocity": "barycentric", "form": "joint", "floor": dice.power(-6, -1)}
        return kd.TwoSidedDrift(**how)
    if kind in ("split", "joint"):
        return kd.TwoSidedDrift(**how, form=kind)
    if kind == "fixed":
        return kd.SinkhornDrift(**how, half_steps=2 * dice.size(20) - 1)
    return kd.SinkhornDrift(**how, tol=dice.power(-6, -1), max_half_steps=dice.size(40))


def draw_level(dice: Dice, x: Tensor, y: Tensor, cost: Any, low: float, high: float) -> float:
    """Between 10^low and 10^high mean costs, as far as the library goes."""
    mean = float(as_cost(cost).pairs(x.double(), y.double()).abs().mean()) or 1.0
    return min(max(mean * dice.power(low, high), 1e-30), 1e30)


def draw_reach(dice: Dice, drift: kd.SoftmaxDrift, x: Tensor, y: Tensor) -> kd.SoftmaxDrift:
    """The drift, where it is a Sinkhorn one sometimes with relaxed marginals."""
    if not isinstance(drift, kd.SinkhornDrift) or dice.chance(0.5):
        return drift
    reach = draw_level(dice, x, y, drift.cost, -1, 2)
    return replace(drift, reach=reach, masses=dice.choice(["unit", "gradient"]))


def draw(seed: int, number: int, keops: bool = False) -> Case:
    """The random call of that number, always the same one."""
    dice = Dice("call", seed, number)
    dtype = dice.choice([*HALF, torch.float32, torch.float32, torch.float64, torch.float64])
    batch = dice.choice([(), (), (), (2,), (2, 3)])
    n, m, d = dice.size(60), dice.size(60), dice.size(40)
    action = dice.choice(list(ACTIONS))
    x, y, z = (dice.cloud(batch, k, d) for k in (n, m, dice.size(20)))
    x, y, z = (points + dice.power(0, 4) for points in (x, y, z)) if dice.chance(0.2) else (x, y, z)
    if dice.chance(0.3):  # far apart
        y = y + dice.power(0, 2 if dtype == torch.float16 else 6) * dice.normal(d)
    scale = dice.power(-2, 2) if dice.chance(0.6) else dice.power(-20, 20)
    if dtype == torch.float16:  # what is neither 0 nor infinite in it
        scale = dice.power(-3, 3) / max(1.0, float(torch.cat([x, y], -2).abs().max()))
    x, y = ((points * scale).to(dtype) for points in (x, y))
    if dice.chance(0.5):  # far from both
        z = z + dice.power(3, 10) * dice.normal(d)
    z = (z * scale).to(torch.float32 if dtype in HALF else dtype)
    if dice.chance(0.3):  # at the particles
        z = x.to(z.dtype)

    drift = draw_drift(dice, d, keops)
    widest = dice.choice([3, 3, 30])
    drift = replace(drift, tau=draw_level(dice, x, y, drift.cost, -widest, widest))
    drift = draw_reach(Dice("reach", seed, number), drift, x, y)
    inputs: dict[str, Tensor] = {}
    for name, points in (("x_weights", x), ("y_weights", y)):
        if dice.chance(0.4):
            inputs[name] = dice.weights(tuple(points.shape[:-1]), dtype)
    if action != "divergence" and dice.chance(0.3):
        extra = (dice.cloud(batch, dice.size(20), d) * scale).to(dtype)
        inputs["negatives"] = extra
        if dice.chance(0.6):
            inputs["negative_weights"] = dice.weights(tuple(extra.shape[:-1]), dtype)
    if not batch and action not in ("divergence", "neighbours") and dice.chance(0.2):
        classes = dice.randint(1, min(4, m))
        inputs["x_labels"] = dice.integers(classes, n)
        inputs["y_labels"] = torch.arange(m) % classes
        inputs["z_labels"] = inputs["x_labels"][dice.integers(n, len(z))]
        if "negatives" in inputs:
            inputs["negative_labels"] = dice.integers(classes, len(inputs["negatives"]))
    others = Dice("model", seed, number)
    if action != "divergence" and others.chance(0.3):  # other draws that repel
        k = max(others.size(60), 1 + int(inputs["x_labels"].max()) if "x_labels" in inputs else 1)
        inputs["model"] = (others.cloud(batch, k, d) * scale).to(dtype)
        if others.chance(0.4):
            inputs["model_weights"] = others.weights((*batch, k), dtype)
        if "x_labels" in inputs:
            inputs["model_labels"] = torch.arange(k) % (1 + int(inputs["x_labels"].max()))
    options: dict[str, Any] = {}
    if action == "loss":
        options = {"normalize": dice.chance(0.5), "scale_features": dice.chance(0.3)}
    if action == "simulate":
        options = {"step_size": dice.power(-2, 0), "warm_start": dice.chance(0.7)}
    return Case(action, drift, x, y, z, inputs, options)


Results = Iterator[tuple[str, Tensor, tuple[int, ...], torch.dtype]]


def given(case: Case) -> dict[str, Tensor]:
    """What a drift is given beside its clouds."""
    return {name: value for name, value in case.inputs.items() if name != "z_labels"}


def at_particles(case: Case) -> Results:
    yield "V", case.drift(case.x, case.y, **given(case)), case.x.shape, case.x.dtype


def at_queries(case: Case) -> Results:
    found = case.drift.fit(case.x, case.y, **given(case))
    z = case.z.clone().requires_grad_()
    labels = {"labels": case.inputs["z_labels"]} if "z_labels" in case.inputs else {}
    v = found(z, **labels)
    yield "V(z)", v, z.shape, z.dtype
    v.sum().backward()
    yield "dV(z)/dz", z.grad, z.shape, z.dtype


def started(case: Case) -> Results:
    first = case.drift.fit(case.x, case.y, **given(case))
    moved = case.x + (first() / 2).to(case.x.dtype)
    second = case.drift.fit(moved, case.y, **given(case), start=first)
    yield "V", second(), case.x.shape, case.x.dtype


def divergence(case: Case) -> Results:
    x, y = (points.clone().requires_grad_() for points in (case.x, case.y))
    solver = {"tol": 1e-3, "max_half_steps": 20}
    how = {"cost": case.drift.cost, "backend": case.drift.backend, **solver}
    how["reach"] = getattr(case.drift, "reach", None)
    value = kd.sinkhorn_divergence(x, y, case.drift.tau, **given(case), **how)
    yield "S", value, x.shape[:-2], x.dtype
    value.sum().backward()
    for points in (x, y):
        yield "dS", points.grad, points.shape, points.dtype


def loss(case: Case) -> Results:
    x = case.x.clone().requires_grad_()
    drifts = [case.drift, kd.OneSidedDrift(case.drift.tau, cost=case.drift.cost)]
    value = kd.drift_loss(x, case.y, drifts, **case.options, **given(case))
    yield "loss", value, (), torch.promote_types(x.dtype, torch.float32)
    value.backward()
    yield "its gradient", x.grad, x.shape, x.dtype


def neighbours(case: Case) -> Results:
    count = kd.effective_neighbours(case.drift.fit(case.x, case.y, **given(case)))
    yield "neighbours", count, case.x.shape[:-2], torch.float64
    if not bool(((count > 0.95) & (count < 1.05 * case.y.shape[-2])).all()):
        raise ArithmeticError("not between 1 and the number of data points")


def simulate(case: Case) -> Results:
    flow = kd.simulate(case.drift, case.x, case.y, steps=2, **case.options, **given(case))
    yield "trajectory", flow.trajectory, (3, *case.x.shape), case.x.dtype


ACTIONS: dict[str, Callable[[Case], Results]] = {
    "particles": at_particles,
    "queries": at_queries,
    "start": started,
    "divergence": divergence,
    "loss": loss,
    "neighbours": neighbours,
    "simulate": simulate,
}


def overflows(
    case: Case, name: str, got: Tensor, actions: dict[str, Callable[[Case], Results]] | None
) -> bool:
    """Whether a result is infinite, never NaN, because in float64 it is beyond its dtype."""
    if case.x.dtype == torch.float64 or bool(torch.isnan(got).any()):
        return False
    floats = {k: v.double() if v.is_floating_point() else v for k, v in case.inputs.items()}
    points = {k: v.double() for k, v in case.tensors().items() if k in ("x", "y", "z")}
    exact = (actions or ACTIONS)[case.action](replace(case, **points, inputs=floats))
    true = next(value for each, value, *_ in exact if each == name)
    return torch.finfo(got.dtype).max / 2 < float(true.detach().abs().max()) < math.inf


def judge(case: Case, actions: dict[str, Callable[[Case], Results]] | None = None) -> str:
    """What is wrong with the answer to a call, in words; nothing if nothing is.

    Raises:
        ArgumentError: The call was refused.
        Exception: Whatever else it raised.
    """
    before = {name: value.clone() for name, value in case.tensors().items()}
    wrong = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", kd.ConvergenceWarning)
        for name, got, shape, dtype in (actions or ACTIONS)[case.action](case):
            if tuple(got.shape) != tuple(shape):
                wrong = wrong or f"{name} has another shape"
            elif got.dtype != dtype:
                wrong = wrong or f"{name} has another dtype"
            elif got.device != case.x.device:
                wrong = wrong or f"{name} lies on another device"
            elif not bool(torch.isfinite(got).all()) and not overflows(case, name, got, actions):
                wrong = wrong or f"{name} is not finite"
    for name, value in case.tensors().items():
        if not torch.equal(value, before[name]):
            wrong = wrong or f"{name} was changed"
    return wrong


def call(seed: int, number: int, keops: bool = False) -> tuple[str, str]:
    """What a call is counted as (answered, refused, failed), and why."""
    case = draw(seed, number, keops)
    try:
        wrong = judge(case)
    except kd.ArgumentError as refusal:
        return "refused", f"{type(refusal).__name__} of {refusal.argument}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{case.action}: {type(error).__name__} at {where.name}"
    return ("failed", f"{case.action}: {wrong}") if wrong else ("answered", case.action)


def draw_fit(seed: int, number: int, size: int | None = None) -> Case:
    """A random fit whose couplings have marginals to speak of."""
    dice = Dice("fit", seed, number)
    dtype = torch.float32 if size else dice.choice([torch.float32, torch.float64])
    n, m = (size or max(2, dice.size(400)) for _ in "xy")
    d = dice.randint(1, 3) if size else dice.size(8)
    x, y = dice.cloud((), n, d), dice.cloud((), m, d) + dice.power(-2, 1) * dice.normal(d)
    x, y = x.to(dtype), y.to(dtype)
    cost = dice.choice(COSTS[:2] if size else COSTS)
    engines = ["dense", "tiled"]
    if d <= 3 and as_cost(cost).curvature is not None:
        engines = [CELLS] if size else [*engines, CELLS, CELLS]
    few = slice(None, None, -(-n // 400))
    inputs = {}
    for name, points in (("x_weights", x), ("y_weights", y)):
        if dice.chance(0.3):
            inputs[name] = dice.weights((len(points),), dtype)
    if dice.chance(0.2):
        inputs["negatives"] = dice.normal(dice.size(50), d).to(dtype)
    drift = kd.SinkhornDrift(
        draw_level(dice, x[few], y[few], cost, -2, 2),
        cost=cost,
        tol=dice.power(-5, -1),
        max_half_steps=dice.size(200),
        half_steps=dice.choice([None, None, 2 * dice.size(20) - 1]),
        backend=dice.choice(engines),
    )
    drift = draw_reach(Dice("fit's reach", seed, number), drift, x[few], y[few])
    before = x + dice.power(-4, 0) * dice.normal(n, d).to(dtype)
    return Case("fit", drift, x, y, before, inputs, {"warm": dice.chance(0.3)})


def true_error(coupling: Any, block: int = 1000) -> tuple[float, float]:
    """L1 error of the columns of the row-normalised plan, and the plan's mean logit, in float64."""
    p, bias = coupling.problem, coupling.bias
    depth = (bias.max() - bias).clamp(max=1e3)  # atoms without weight have no share in the plan
    columns, size, aim = torch.zeros_like(bias), 0.0, p.b
    if p.reach is not None:  # rows keep a·exp(−f/ρ), columns should keep b·exp(−g/ρ)
        aim = p.b.log() - coupling.g * p.tau / p.reach
        mass = aim.logsumexp(0)
        aim = (aim - mass).exp()
    for x, a in zip(p.x.double().split(block), p.a.split(block), strict=True):
        costs = p.cost.pairs(x, p.y.double()) / p.tau
        logits = bias - costs
        plan = a[:, None] * logits.softmax(-1)
        if p.reach is not None:
            plan *= (logits.logsumexp(-1) * p.tau / (p.reach + p.tau) - mass).exp()[:, None]
        columns += plan.sum(0)
        size += float((plan * (costs.abs() + depth)).sum())
    return float((columns - aim).abs().sum()), size


def check_fit(case: Case) -> tuple[str, str]:
    """What a fit is counted as, and why."""
    engine = getattr(case.drift.backend, "name", case.drift.backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kd.ConvergenceWarning)
        start = case.drift.fit(case.z, case.y, **case.inputs) if case.options["warm"] else None
        found = case.drift.fit(case.x, case.y, **case.inputs, start=start)
    for side, coupling in zip(("data", "model"), found.couplings, strict=True):
        reported, (true, logit) = float(coupling.marginal_error), true_error(coupling)
        allowed = 4 * torch.finfo(case.x.dtype).eps * (1 + logit)
        allowed += 2 * ACCURACY[case.x.dtype] if case.drift.backend == CELLS else 0
        if reported < true - allowed:
            return "failed", (
                f"{engine} {case.x.dtype}: reported {reported:.3e}, true {true:.3e}, "
                f"allowed {allowed:.1e}, {side} side, {coupling.reason}"
            )
    return "answered", f"{engine} {case.x.dtype}"


def rounds(count: int, seconds: float, unit: str) -> Iterator[int]:
    """Numbers with a progress bar, until the time is up."""
    begun = time.monotonic()
    for number in tqdm(range(count), unit=unit, smoothing=0):
        if seconds and time.monotonic() - begun > seconds:
            return
        yield number


def main(options) -> int:
    seed = options.seed
    if options.only >= 0:
        case = draw(seed, options.only, options.keops)
        print(case)
        print(judge(case) or "nothing wrong")
        return 0
    if options.only_fit >= 0:
        case = draw_fit(seed, options.only_fit)
        print(case)
        print(*check_fit(case))
        return 0
    counts: Counter[tuple[str, str]] = Counter()
    failures: dict[str, list[str]] = defaultdict(list)
    for number in rounds(options.calls, options.seconds, "call"):
        verdict = call(seed, number, options.keops)
        counts[verdict] += 1
        if verdict[0] == "failed":
            case = draw(seed, number, options.keops)
            failures[verdict[1]].append(f"only={number} seed={seed}  {case}")
    for number in rounds(options.fits, options.seconds, "fit"):
        verdict, why = check_fit(draw_fit(seed, number))
        counts[verdict, f"fit, {why.partition(':')[0]}"] += 1
        if verdict == "failed":
            failures[why.partition(":")[0]].append(f"only_fit={number} seed={seed}  {why}")
    for number in range(6 if options.large else 0):
        verdict, why = check_fit(draw_fit(seed, number, size=20_000))
        counts[verdict, f"large fit, {why.partition(':')[0]}"] += 1
        if verdict == "failed":
            failures["large"].append(f"{number} seed={seed}  {why}")
    for (verdict, why), count in sorted(counts.items()):
        print(f"{count:8d}  {verdict}: {why}")
    for why, cases in failures.items():
        print(f"\n{why}, {len(cases)} times")
        for each in cases[:SHOWN]:
            print(f"  python benchmarks/fuzz.py {each}")
    return 1 if failures else 0


if __name__ == "__main__":
    begin(main, SETTINGS)
