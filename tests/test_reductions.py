"""The two verbs: three engines against one dense float64 reference.

Tolerances. A logit β_j − C_ij/τ carries a rounding error of a few eps times its size, and of the
size of the coordinates it is computed from; so log-masses agree to ``8·eps·(1 + max|β| + max C/τ)``
with the maximum over the pairs of one row, and averages to twice that times the spread of what is
averaged (numerator and denominator). KeOps compiles each formula for seconds, so its share of the
grid is one axis at a time.
"""

from __future__ import annotations

import math

import pytest
import reference as ref
import torch

import keodrift as kd
from keodrift.costs import Cost
from keodrift.errors import ArgumentError, DeviceError, DtypeError, OptionError, OutOfMemoryError
from keodrift.reductions import ENGINES, Cells, Tiled, choose_backend, gibbs_kernel
from keodrift.reductions.blocks import weighted_sums
from keodrift.reductions.engines.cells import kernel as cells
from keodrift.reductions.engines.keops import kernel as keops
from keodrift.reductions.engines.keops.kernel import Keops

STORED = ["dense", "tiled"]
RHOS = [1e-3, 1.0, 1e3]
DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("problems", [1, 3])
@pytest.mark.parametrize("width", [1, 2, 40])
@pytest.mark.parametrize("turned", [False, True])
def test_weighted_sums_of_any_shape_are_sums_and_contiguous(cloud, problems, width, turned):
    weights = cloud(0, problems, 7, 5).mT if turned else cloud(0, problems, 5, 7)
    values = cloud(1, problems, 7, width)
    found = weighted_sums(weights, values)
    expected = (weights[..., None] * values[:, None]).sum(2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous()
    ones = torch.ones_like(values[..., :1])
    torch.testing.assert_close(weighted_sums(weights, None), weights @ ones, rtol=1e-12, atol=1e-12)


class Case:
    """Clouds, a bias with removed atoms, and what the verbs should return."""

    def __init__(
        self,
        cloud,
        *,
        d=2,
        n=23,
        m=31,
        dtype=torch.float32,
        cost="half_squared",
        rho=1.0,
        mask=False,
        batch=(),
    ):
        self.x = cloud(0, *batch, n, d, dtype=dtype)
        self.y = (0.8 * cloud(1, *batch, m, d) + 0.5).to(dtype)
        self.bias = cloud(2, *batch, m)
        self.bias[..., 3::7] = -torch.inf
        self.cost, self.mask, self.dtype = cost, mask, dtype
        self.tau = rho * ref.mean_cost(self.x, self.y, cost)
        self.args = (self.x, self.y, self.bias, cost, self.tau, mask)
        logits = ref.pairs(self.x, self.y, cost) / self.tau
        self.row = (
            8 * torch.finfo(dtype).eps * (1 + float(cloud(2, m).abs().max()) + logits.amax(-1))
        )

    def kernel(self, engine, x=None):
        cost = ref.OWN.get(self.cost, self.cost)
        x = self.x if x is None else x
        return gibbs_kernel(x, self.y, cost, self.tau, mask_self=self.mask, backend=engine)

    def check_mass(self, got, slack=1.0):
        expected = ref.log_mass(*self.args)
        assert got.dtype == torch.float64 and got.shape == expected.shape
        empty = torch.isneginf(expected)
        assert torch.equal(torch.isneginf(got), empty)
        off = (got - expected)[~empty].abs() / (slack * self.row)[~empty]
        assert float(off.max()) <= 1

    def check_average(self, got, values=None):
        expected = ref.barycentre(*self.args, values=values)
        assert got.dtype == self.dtype and got.shape == expected.shape
        values = self.y if values is None else values
        reach = float(values.double().amax() - values.double().amin()) * math.sqrt(values.shape[-1])
        size = torch.finfo(self.dtype).eps * float(values.abs().max())
        off = (got.double() - expected).norm(dim=-1) / (2 * self.row * reach + 2 * size)
        assert float(off.max()) <= 1

    def check(self, engine, verbs=("mass", "average"), guesses=(None, 0.0, 3.0)):
        """Both verbs, without a guess of the log-mass, with the right one and with a near one."""
        kernel, exact = self.kernel(engine), ref.log_mass(*self.args)
        exact = exact.masked_fill(torch.isneginf(exact), 0)
        for off in guesses:
            shift = None if off is None else exact + off
            if "mass" in verbs:
                self.check_mass(kernel.log_mass(self.bias, shift))
            if "average" in verbs:
                self.check_average(kernel.barycentre(self.bias, guess=shift))


# Dense and tiled: the full grid.


@pytest.mark.parametrize("engine", STORED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 2, 3, 6, 64])
@pytest.mark.parametrize("cost", list(ref.COSTS))
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("mask", [False, True], ids=["", "masked"])
def test_verbs(cloud, engine, dtype, d, cost, rho, mask):
    for n, m in ((23, 31), (31, 23)):
        Case(cloud, d=d, n=n, m=m, dtype=dtype, cost=cost, rho=rho, mask=mask).check(engine)
    Case(cloud, d=d, dtype=dtype, cost=cost, rho=rho, mask=mask, batch=(2, 3)).check(engine)


@pytest.mark.parametrize("engine", STORED)
@pytest.mark.parametrize(("n", "m"), [(23, 31), (500, 700)])
def test_transposed_kernel_swaps_the_clouds(cloud, engine, n, m):
    case = Case(cloud, n=n, m=m, mask=True)
    turned = case.kernel(engine).T
    bias = cloud(5, n)
    expected = ref.log_mass(case.y, case.x, bias, case.cost, case.tau, True)
    bound = 8 * torch.finfo(torch.float32).eps * (1 + ref.pairs(case.x, case.y, case.cost).max())
    torch.testing.assert_close(
        turned.log_mass(bias), expected, rtol=0, atol=float(bound / case.tau)
    )
    torch.testing.assert_close(
        turned.T.log_mass(case.bias), case.kernel(engine).log_mass(case.bias)
    )


@pytest.mark.parametrize("engine", STORED)
def test_a_transposed_kernel_has_the_same_pairs(cloud, engine):
    """Costs of (x, y), also where those of (y, x) are others."""
    case = Case(cloud, cost="lopsided", dtype=torch.float64)
    turned, bias = case.kernel(engine).T, cloud(5, 23)
    logits = ref.log_kernel(case.x, case.y, "lopsided", case.tau).mT
    expected = torch.logsumexp(logits + bias, -1)
    torch.testing.assert_close(turned.log_mass(bias), expected)
    again = turned.T.log_mass(case.bias)
    torch.testing.assert_close(again, case.kernel(engine).log_mass(case.bias))


@pytest.mark.parametrize("engine", [*STORED, "cells"])
@pytest.mark.parametrize("cost", list(ref.COSTS))
def test_every_problem_of_a_batch_has_its_own_temperature(cloud, monkeypatch, engine, cost):
    monkeypatch.setattr(cells, "MOMENT_PAIRS", 0)
    if engine == "cells" and "squared" not in cost:
        return  # what cells cannot compress is KeOps'
    x, y, bias = cloud(0, 3, 20, 2), cloud(1, 3, 25, 2), cloud(2, 3, 25)
    taus = torch.tensor([0.1, 1.0, 7.0])
    kernel = gibbs_kernel(x, y, ref.OWN.get(cost, cost), taus, backend=engine)
    found = kernel.log_mass(bias), kernel.barycentre(bias), kernel.T.log_mass(cloud(3, 3, 20))
    gradient = kernel.mean_cost_gradient(bias)
    for k, tau in enumerate(taus.tolist()):
        one = gibbs_kernel(x[k], y[k], ref.OWN.get(cost, cost), tau, backend="dense")
        close = {"rtol": 1e-7, "atol": 1e-7}
        torch.testing.assert_close(found[0][k], one.log_mass(bias[k]), **close)
        torch.testing.assert_close(found[1][k], one.barycentre(bias[k]), **close)
        torch.testing.assert_close(found[2][k], one.T.log_mass(cloud(3, 3, 20)[k]), **close)
        torch.testing.assert_close(gradient[k], one.mean_cost_gradient(bias[k]), **close)


@pytest.mark.parametrize("engine", STORED)
def test_averages_of_any_values(cloud, engine):
    case = Case(cloud, batch=(2,), dtype=torch.float64)
    values = cloud(4, 2, 31, 5)
    case.check_average(case.kernel(engine).barycentre(case.bias, values), values)
    exact = ref.log_mass(*case.args)
    case.check_average(case.kernel(engine).barycentre(case.bias, values, exact), values)


@pytest.mark.parametrize("engine", STORED)
@pytest.mark.parametrize("far", [-1e4, -200.0, 200.0, 1e4])
def test_a_wrong_guess_costs_time_and_not_the_answer(cloud, engine, far):
    case = Case(cloud, rho=1e-2)
    shift = ref.log_mass(*case.args) + far
    shift[::2] -= 2 * far
    case.check_mass(case.kernel(engine).log_mass(case.bias, shift))
    case.check_average(case.kernel(engine).barycentre(case.bias, guess=shift))


def test_a_bad_guess_does_not_reach_the_transposed_kernel(cloud):
    """What was absorbed about it is cut, and must not be taken for exact by columns later."""
    x, y = cloud(0, 6, 2), cloud(1, 5, 2)
    bias, rows = torch.zeros(5, dtype=torch.float64), torch.full((6,), -73.0, dtype=torch.float64)
    rows[2] = -70
    exact = [k.log_mass(b) for k, b in zip(pair(x, y), (bias, rows), strict=True)]
    bad = exact[0].clone()
    bad[2] -= 70
    kernel, turned = pair(x, y)
    torch.testing.assert_close(kernel.log_mass(bias, bad), exact[0])
    torch.testing.assert_close(turned.log_mass(rows, exact[1]), exact[1])


def pair(x, y):
    kernel = gibbs_kernel(x, y, backend="dense")
    return kernel, kernel.T


@pytest.mark.parametrize("engine", ["dense", "tiled"])
def test_without_any_atom_there_is_no_mass(cloud, engine):
    kernel = gibbs_kernel(cloud(0, 4, 2), cloud(1, 5, 2), backend=engine)
    nothing = torch.full((5,), -torch.inf, dtype=torch.float64)
    assert kernel.log_mass(nothing).tolist() == [-math.inf] * 4


@pytest.mark.parametrize("engine", STORED)
def test_guesses_in_which_some_rows_underflow(cloud, engine):
    """A plain sum about a guess 60 above the answer leaves float32 only denormals."""
    case = Case(cloud)
    for off in (20.0, 60.0, 80.0, 95.0, -60.0, -85.0):
        shift = ref.log_mass(*case.args) + off
        case.check_mass(case.kernel(engine).log_mass(case.bias, shift))
        case.check_average(case.kernel(engine).barycentre(case.bias, guess=shift))


@pytest.mark.parametrize("engine", STORED)
@pytest.mark.parametrize("cost", ["half_squared", "euclidean", "student"])
def test_rows_without_atoms(cloud, engine, cost):
    case = Case(cloud, n=3, m=3, mask=True, cost=cost)
    case.bias[:] = -torch.inf
    case.bias[1] = 0.3  # query 1 sees only itself, masked
    kernel = case.kernel(engine)
    mass = kernel.log_mass(case.bias)
    assert torch.isneginf(mass[1]) and torch.isfinite(mass[[0, 2]]).all()
    average = kernel.barycentre(case.bias)
    assert torch.equal(average[1], torch.zeros(2))
    torch.testing.assert_close(average[[0, 2]], case.y[[1, 1]])
    gradient = kernel.mean_cost_gradient(case.bias)
    assert torch.equal(gradient[1], torch.zeros(2)) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("backend", STORED)
def test_clouds_larger_than_a_tile(cloud, backend):
    """More rows and columns than one tile holds, so the running maximum has work to do."""
    case = Case(cloud, n=300, m=2500, rho=1e-2, mask=True)
    case.check(backend)
    case = Case(cloud, n=2500, m=300, rho=1e-2, mask=True, dtype=torch.float64)
    case.check(backend)


@pytest.mark.parametrize("engine", STORED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_spread_of_biases(cloud, engine, dtype):
    """Potentials that differ by hundreds, as they do at small temperatures."""
    case = Case(cloud, dtype=dtype)
    case.bias *= 300
    case.row += 8 * torch.finfo(dtype).eps * 1000
    case.check(engine)


def compare_gradients(case, engine, verbs=("mass", "average")):
    x = case.x.clone().requires_grad_()
    z = case.x.double().clone().requires_grad_()
    eps = torch.finfo(case.dtype).eps
    slope = float(ref.gradients(case.x, case.y, case.cost).norm(dim=-1).max()) / case.tau
    reach = ref.spread(case.x, case.y)
    bound = 16 * eps * (1 + float(case.row.max()) / (8 * eps)) * max(slope, 1)
    outputs = {
        "mass": (lambda k: k.log_mass(case.bias), lambda z: ref.log_mass(z, *case.args[1:])),
        "average": (lambda k: k.barycentre(case.bias), lambda z: ref.barycentre(z, *case.args[1:])),
    }
    for verb in verbs:
        ours, theirs = outputs[verb]
        got = ours(case.kernel(engine, x))
        probe = torch.randn(
            got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        (grad,) = torch.autograd.grad((got * probe.to(got.dtype)).sum(), x)
        # Written without the diagonal's −∞, whose gradient would be NaN in the reference.
        (expected,) = torch.autograd.grad((theirs(z) * probe).sum(), z)
        scale = float(probe.abs().max()) * (reach * 3 if verb == "average" else 1)
        torch.testing.assert_close(grad.double(), expected, rtol=0, atol=bound * scale)
        assert grad.dtype == case.dtype


@pytest.mark.parametrize("engine", STORED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 3, 64])
@pytest.mark.parametrize("cost", list(ref.COSTS))
@pytest.mark.parametrize("batch", [(), (2, 2)], ids=["", "batch"])
def test_gradients_in_the_queries(cloud, engine, dtype, d, cost, batch):
    for rho in (0.1, 10.0):
        compare_gradients(Case(cloud, d=d, dtype=dtype, cost=cost, rho=rho, batch=batch), engine)


@pytest.mark.parametrize("engine", STORED)
@pytest.mark.parametrize("cost", list(ref.COSTS))
def test_masked_gradients_in_the_queries(cloud, engine, cost):
    x, y, bias = cloud(0, 6, 2), cloud(1, 8, 2), cloud(2, 8)
    name = ref.OWN.get(cost, cost)
    for verb in ("log_mass", "barycentre"):

        def run(q, verb=verb):
            kernel = gibbs_kernel(q, y, name, 1.3, mask_self=True, backend=engine)
            return getattr(kernel, verb)(bias)

        assert torch.autograd.gradcheck(run, (x.clone().requires_grad_(),))


@pytest.mark.parametrize("engine", STORED)
@pytest.mark.parametrize("cost", list(ref.COSTS))
@pytest.mark.parametrize("mask", [False, True], ids=["", "masked"])
def test_mean_cost_gradient(cloud, engine, cost, mask):
    case = Case(cloud, cost=cost, dtype=torch.float64, mask=mask, batch=(2,))
    rows = ref.softmax(ref.log_kernel(case.x, case.y, cost, case.tau, mask) + case.bias[:, None])
    gradients = ref.gradients(case.x, case.y, cost)
    expected = (rows[..., None] * gradients).sum(-2)
    bound = 2 * float(case.row.max()) * float(gradients.norm(dim=-1).max())
    got = case.kernel(engine).mean_cost_gradient(case.bias)
    torch.testing.assert_close(got, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("engine", STORED)
@pytest.mark.parametrize("velocity_at", ["coincident", "apart"])
def test_distance_has_no_gradient_at_an_atom(cloud, engine, velocity_at):
    y = cloud(0, 5, 2)
    x = y.clone() if velocity_at == "coincident" else y + 1
    got = gibbs_kernel(x, y, "euclidean", 0.5, backend=engine).mean_cost_gradient(torch.zeros(5))
    rows = ref.softmax(ref.log_kernel(x, y, "euclidean", 0.5))
    expected = (rows[..., None] * ref.gradients(x, y, "euclidean")).sum(-2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


# Hard numbers: the exact answer far from the origin, far apart, and at extreme temperatures.


@pytest.mark.parametrize("engine", STORED)
@pytest.mark.parametrize("cost", ["half_squared", "squared"])
@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_clouds_far_apart_lose_no_digits(cloud, engine, cost, tau):
    """C/τ ~ 1e8 between the clouds, in float32: what matters are differences of order 1."""
    x, y = cloud(0, 20, 2, dtype=torch.float32), cloud(1, 30, 2, dtype=torch.float32)
    y = y + torch.tensor([8e3, -6e3])
    bias = cloud(2, 30)
    # Points exact in working coordinates are part of the input: rounding enters with the spread
    # of each cloud (10) times the gap, in units of τ, not with the gap squared.
    eps, gap = torch.finfo(torch.float32).eps, 1e4 * (2 if cost == "squared" else 1) / tau
    kernel = gibbs_kernel(x, y, cost, tau, backend=engine)
    expected = ref.log_mass(x, y, bias, cost, tau)
    assert float(expected.abs().max()) > 4e7
    torch.testing.assert_close(
        kernel.log_mass(bias), expected, rtol=1e-15, atol=eps * gap * ref.spread(y)
    )
    average = ref.barycentre(x, y, bias, cost, tau)
    got = kernel.barycentre(bias).double()
    torch.testing.assert_close(got, average, rtol=2 * eps, atol=eps * gap * ref.spread(y) ** 2)


@pytest.mark.parametrize("engine", STORED)
def test_clouds_far_from_the_origin(cloud, engine):
    offset = torch.tensor([1024.0, -2048.0])  # exact in float32
    x = (cloud(0, 20, 2, dtype=torch.float32) * 64).round() / 64
    y = (cloud(1, 30, 2, dtype=torch.float32) * 64).round() / 64
    bias = cloud(2, 30)
    for cost in ("half_squared", "euclidean"):
        near = gibbs_kernel(x, y, cost, 0.1, backend=engine)
        far = gibbs_kernel(x + offset, y + offset, cost, 0.1, backend=engine)
        bound = 8 * torch.finfo(torch.float32).eps * float(ref.pairs(x, y, cost).max()) / 0.1
        # The means of the clouds, rounded, are the only difference.
        bound += 4 * torch.finfo(torch.float32).eps * 2048 * ref.spread(x, y) / 0.1
        torch.testing.assert_close(near.log_mass(bias), far.log_mass(bias), rtol=0, atol=bound)


@pytest.mark.parametrize("engine", STORED)
def test_near_neighbours_in_a_wide_cloud(cloud, engine):
    """What ½‖x‖² + ½‖y‖² − x·y would cancel: pairs at distance √τ, 600 √τ from the mean.

    Rounding the coordinates (radius R in units of √τ) moves a logit by eps·R·√(2C/τ), and no more
    is allowed; the expanded square would be off by eps·R².
    """
    tau = 1e-5
    x = cloud(0, 40, 2, dtype=torch.float32)
    y = x + tau**0.5 * cloud(1, 40, 2, dtype=torch.float32)
    bias = cloud(2, 40)
    args = (x, y, bias, "half_squared", tau)
    logits = ref.pairs(x, y, "half_squared") / tau
    rows = ref.softmax(bias - logits)
    radius = float(x.norm(dim=-1).max()) / tau**0.5
    near = (rows * (logits + 2 * radius * (2 * logits).sqrt())).sum(-1)
    bound = 4 * torch.finfo(torch.float32).eps * (1 + float(bias.abs().max()) + near)
    assert float(bound.max()) < torch.finfo(torch.float32).eps * radius**2 / 10
    kernel = gibbs_kernel(x, y, "half_squared", tau, backend=engine)
    expected = ref.log_mass(*args)
    for shift in (None, expected):
        off = (kernel.log_mass(bias, shift) - expected).abs()
        assert bool((off <= bound).all())


# KeOps: each axis once.


@pytest.mark.usefixtures("keops")
@pytest.mark.filterwarnings("error::keodrift.errors.BackendWarning")
class TestKeops:
    @pytest.mark.parametrize("d", [1, 2, 3, 6, 64])
    def test_verbs_in_single_precision(self, cloud, d):
        for rho in RHOS:
            Case(cloud, d=d, rho=rho).check("keops", guesses=(None,))
        Case(cloud, d=d, n=31, m=23).check("keops", guesses=(None,))

    def test_double_precision(self, cloud):
        for rho in RHOS:
            low, high = (Case(cloud, d=d, rho=rho, dtype=torch.float64) for d in (2, 64))
            low.check("keops", verbs=("average",), guesses=(None,))
            high.check("keops", verbs=("mass",), guesses=(None,))

    def test_plain_sums_about_a_guess(self, cloud):
        for rho in RHOS:
            Case(cloud, rho=rho).check("keops", guesses=(0.0, 3.0, 500.0))
        Case(cloud, batch=(2, 2)).check("keops", guesses=(0.0,))

    def test_plain_sums_about_a_rough_guess(self, cloud, monkeypatch):
        monkeypatch.setattr(keops, "ROUGH_PAIRS", 0)
        Case(cloud).check("keops", guesses=(None,))  # too few atoms for a guess
        monkeypatch.setattr(keops, "ROUGH_ATOMS", 5)
        for rho in RHOS:
            Case(cloud, rho=rho).check("keops", guesses=(None,))

    def test_plain_sums_in_high_dimension(self, cloud):
        Case(cloud, d=64).check("keops", verbs=("mass",), guesses=(0.0, 3.0))

    def test_batch_axes(self, cloud):
        for batch in ((1,), (3,), (2, 3)):
            Case(cloud, batch=batch).check("keops", guesses=(None,))

    @pytest.mark.parametrize("backend", ["keops", "cells"])
    @pytest.mark.parametrize("mask_self", [False, True])
    def test_a_batch_of_single_pairs(self, cloud, backend, mask_self):
        x, y, zero = cloud(0, 3, 1, 2), cloud(1, 3, 1, 2), torch.zeros(3, 1)
        got, stored = (
            gibbs_kernel(x, y, mask_self=mask_self, backend=b) for b in (backend, "dense")
        )
        torch.testing.assert_close(got.log_mass(zero), stored.log_mass(zero))
        torch.testing.assert_close(got.T.log_mass(zero), stored.T.log_mass(zero))
        torch.testing.assert_close(got.barycentre(zero), stored.barycentre(zero))

    def test_masked_diagonals(self, cloud):
        Case(cloud, mask=True).check("keops", verbs=("mass",))
        for n, m in ((23, 31), (31, 23)):
            Case(cloud, n=n, m=m, d=3, mask=True).check("keops", verbs=("average",))

    def test_a_masked_query_alone(self, cloud):
        case = Case(cloud, mask=True)
        case.bias[:] = -torch.inf
        case.bias[1] = 0.3
        mass = case.kernel("keops").log_mass(case.bias)
        assert torch.isneginf(mass[1]) and torch.isfinite(mass[2:]).all()

    def test_the_other_costs(self, cloud):
        Case(cloud, cost="squared").check("keops")  # the formulas of half_squared
        Case(cloud, cost="euclidean").check("keops")
        Case(cloud, cost="student").check("keops", verbs=("mass",))

    def test_drifts(self, cloud):
        """Whole recipes on the formulas above, against the engine that stores its pairs."""
        x, y = cloud(0, 60, 2, dtype=torch.float32), cloud(1, 70, 2, dtype=torch.float32) + 1
        p = ref.problem(x, y, 0.5)
        for make, passes in (
            (lambda **o: kd.OneSidedDrift(0.5, mask_self=False, **o), 1),
            (lambda **o: kd.TwoSidedDrift(0.5, mask_self=False, **o), 2),
            (lambda **o: kd.SinkhornDrift(0.5, half_steps=9, **o), 9),
        ):
            expected = make(backend="dense")(x.double(), y.double())
            bound = ref.tolerance(p, torch.float32, passes)
            got = make(backend="keops")(x, y).double()
            torch.testing.assert_close(got, expected, rtol=0, atol=bound)
        field = kd.SinkhornDrift(0.5, tol=1e-4, backend="keops").fit(x, y)
        logits = ref.log_kernel(x, y, "half_squared", 0.5)
        rounding = 4 * torch.finfo(torch.float32).eps * (1 + ref.logit_scale(p))
        assert bool(field.converged)
        assert float(ref.column_error(logits, p.a, p.b, field.data.bias)) <= 1e-4 + rounding

    def test_gradient_of_log_mass(self, cloud):
        compare_gradients(Case(cloud), "keops", ("mass",))

    def test_gradient_of_the_barycentre(self, cloud):
        compare_gradients(Case(cloud, d=3), "keops", ("average",))


def test_choose_backend_explains_itself():
    small = choose_backend(1000, 1000, 2)
    assert small.engine == "dense" and str(1000 * 1000) in small.reason
    for n, m, d, device in (
        (100_000, 100_000, 2, "cpu"),
        (100_000, 100_000, 512, "cpu"),
        (100_000, 100_000, 512, "cuda"),
        (64, 64, 512, "cpu"),
    ):
        choice = choose_backend(n, m, d, device=device)
        assert choice.engine in ENGINES
        assert len(choice.reason.split()) >= 4
        assert choice.engine in str(choice) and choice.reason in str(choice)
    assert choose_backend(100_000, 100_000, 512).engine == "tiled"
    assert choose_backend(100_000, 100_000, 512).engine != "dense"
    # A batch counts with all its problems, and may be larger than one that is stored alone.
    assert choose_backend(3000, 3000, 2).engine != "dense"
    assert choose_backend(1000, 1000, 2, batch=10).engine == "dense"
    assert choose_backend(1000, 1000, 2, batch=1000).engine != "dense"
    with pytest.raises(OptionError) as error:
        choose_backend(10, 10, 2, cost="manhattan")
    assert error.value.argument == "cost"


def test_a_graph_holds_no_coordinates_of_all_pairs(cloud, resized):
    """Where these are many, the dense engine leaves it to blocks that are formed again."""
    x, y = cloud(0, 30, 5), cloud(1, 40, 5)
    small, large = [], []
    for found, stored in ((small, 30 * 40 * 5), (large, 30 * 40 * 5 - 1)):
        resized(stored=stored)
        q = x.clone().requires_grad_()
        kernel = gibbs_kernel(q, y, "euclidean", 0.3, backend="dense")
        found.append(kernel.engine.name)
        bias = torch.zeros(40)
        loss = kernel.log_mass(bias).sum() + kernel.barycentre(bias).square().sum()
        found += torch.autograd.grad(loss, q)
        still = gibbs_kernel(x, y, "euclidean", 0.3, backend="dense")
        found += [still.engine.name, still.mean_cost_gradient(bias)]
    assert (small[0], large[0], large[2]) == ("dense", "tiled", "dense")
    torch.testing.assert_close(small[1], large[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(small[3], large[3], rtol=1e-9, atol=1e-12)


def test_auto_is_the_chosen_engine(cloud):
    kernel = gibbs_kernel(cloud(0, 9, 2), cloud(1, 8, 2), "half_squared", 1.0)
    assert kernel.engine.name == choose_backend(9, 8, 2).engine


def test_a_named_engine_is_the_one_that_answers(cloud):
    for name in ENGINES:
        kernel = gibbs_kernel(cloud(0, 9, 2), cloud(1, 8, 2), "half_squared", 1.0, backend=name)
        assert kernel.engine.name == name
        same = gibbs_kernel(cloud(0, 9, 2), cloud(1, 8, 2), backend=ENGINES[name])
        assert same.engine is ENGINES[name] and same.T.engine is ENGINES[name]
    with pytest.raises(ArgumentError) as error:
        gibbs_kernel(cloud(0, 9, 2), cloud(1, 8, 2), "half_squared", 1.0, backend="numpy")
    assert error.value.argument == "backend"


def test_engines_are_objects_that_compose(cloud):
    x, y, bias = cloud(0, 9, 5), cloud(1, 8, 5), cloud(2, 8)
    backend = Cells(otherwise=Tiled())  # cells compress nothing in five dimensions
    found = gibbs_kernel(x, y, backend=backend).log_mass(bias)
    assert torch.equal(found, gibbs_kernel(x, y, backend="tiled").log_mass(bias))
    field = kd.SinkhornDrift(0.5, half_steps=5, backend=backend).fit(x, y)
    assert field.couplings[0].problem.kernel.engine is backend
    tiled = kd.SinkhornDrift(0.5, half_steps=5, backend="tiled")
    assert torch.equal(field(), tiled(x, y))


def test_no_block_of_all_pairs_is_ever_stored_by_the_streaming_engine():
    """Linear memory: the largest tensor that the tiled engine makes stays far below N·M."""
    n = 6000
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator) for _ in range(2))
    kernel = gibbs_kernel(x, y, "half_squared", 0.5, mask_self=True, backend="tiled")
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    drift = kd.SinkhornDrift(0.5, backend="tiled")
    with Watch():
        mass = kernel.log_mass(torch.zeros(n))
        kernel.log_mass(torch.zeros(n), mass)
        kernel.barycentre(torch.zeros(n), guess=mass)
        kernel.mean_cost_gradient(torch.zeros(n))
        drift(x, y)  # coarse levels included
    assert largest < n * n / 10


def test_costs_with_structure_and_the_same_as_an_expression(cloud):
    for name in ("half_squared", "squared", "euclidean"):
        named = Case(cloud, cost=name, dtype=torch.float64)
        plain = Cost("plain", lambda x, y, name=name: ref.COSTS[name](x, y))
        kernel = gibbs_kernel(named.x, named.y, plain, named.tau, backend="tiled")
        named.check_mass(kernel.log_mass(named.bias))
        named.check_average(kernel.barycentre(named.bias))


@pytest.mark.parametrize("device", ["abacus", "meta", 3.5, "cuda:99"])
def test_warming_up_for_a_device_that_is_not_there_names_the_argument(device):
    with pytest.raises(DeviceError, match="^device: got"):
        kd.warmup(2, device=device, progress=False)


@pytest.mark.parametrize("dtype", ["float32", torch.float16])
def test_warming_up_for_another_dtype_names_the_argument(dtype):
    with pytest.raises(DtypeError, match="^dtype: got"):
        kd.warmup(2, dtype, progress=False)
    with pytest.raises(OptionError, match="^d: got '2'"):
        kd.warmup("2", progress=False)


def test_what_does_not_fit_is_said_in_sizes():
    """Thirty terabytes of pairs: refused before any page is touched."""
    x = torch.zeros(1, 1).expand(3_000_000, 1)
    with pytest.raises(torch.OutOfMemoryError, match="3,000,000 × 3,000,000 pairs") as error:
        gibbs_kernel(x, x, backend="dense").log_mass(torch.zeros(3_000_000))
    assert isinstance(error.value, OutOfMemoryError) and error.value.argument == "backend"
    assert "'tiled' or 'keops'" in error.value.needs and "33,527.6 GiB" in error.value.needs
    assert isinstance(error.value.__cause__, RuntimeError)


def test_a_streaming_engine_that_does_not_fit_advises_fewer_points(monkeypatch, cloud):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    kernel = gibbs_kernel(cloud(0, 9, 2), cloud(1, 8, 2), backend="tiled")
    monkeypatch.setattr(kernel, "_stable_log_sum", full)
    with pytest.raises(OutOfMemoryError, match="9 × 8 pairs in d = 2.*fewer points"):
        kernel.log_mass(torch.zeros(8))
    monkeypatch.setattr(kernel, "_stable_log_sum", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kernel.log_mass(torch.zeros(8))


def test_what_is_compiled_ahead_is_what_a_fit_of_a_cost_written_by_hand_takes(keops, monkeypatch):
    seen = []
    made = Keops.kernel

    def watched(self, frame, batch):
        seen.append(frame.cost)
        return made(self, frame, batch)

    monkeypatch.setattr(Keops, "kernel", watched)
    kd.warmup(2, cost=lambda x, y: ((x - y) ** 2).sum(-1), progress=False)
    assert seen[-1].curvature == 2.0


@pytest.mark.parametrize("argument", ["n", "m", "d", "batch"])
def test_the_choice_of_an_engine_refuses_sizes_below_zero(argument):
    with pytest.raises(OptionError, match=f"^{argument}: got -1"):
        kd.choose_backend(**{"n": 3, "m": 3, "d": 2, argument: -1})
