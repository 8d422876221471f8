"""Each drift against its dense reference, over every option."""

from __future__ import annotations

import dataclasses

import pytest
import reference as ref
import torch

import keodrift as kd

ALL_COSTS = ["half_squared", "squared", "euclidean", "student", "lopsided"]
VELOCITIES = ["barycentric", "gradient"]
N, M, U, D = 7, 10, 4, 3


def as_cost(name):
    return ref.OWN.get(name, name)


@pytest.fixture
def clouds(cloud):
    """Clouds of different sizes, with weights that contain zeros."""
    a, b, w = cloud(10, N).exp(), cloud(11, M).exp(), cloud(12, U).exp()
    a[2], b[0], b[5], w[1] = 0, 0, 0, 0
    return {
        "x": cloud(0, N, D),
        "y": 0.7 * cloud(1, M, D) + 1,
        "u": 1.5 * cloud(2, U, D),
        "a": a,
        "b": b,
        "w": w,
        "z": 2 * cloud(3, 5, D),
    }


def inputs(clouds, weighted, negatives):
    """The same inputs for the reference and for the package."""
    short, long = {}, {}
    if weighted:
        short |= {"a": clouds["a"], "b": clouds["b"]}
        long |= {"x_weights": clouds["a"], "y_weights": clouds["b"]}
    if negatives:
        short |= {"u": clouds["u"], "w": clouds["w"]}
        long |= {"negatives": clouds["u"], "negative_weights": clouds["w"]}
    return short, long


def agree(field, expected, p, z, passes=1):
    bound = ref.tolerance(p, passes=passes)
    torch.testing.assert_close(field(), expected(), rtol=0, atol=bound)
    x = field.particles  # given as queries they are points like any other: none is masked
    torch.testing.assert_close(field(x), expected(x), rtol=0, atol=bound)
    torch.testing.assert_close(field(z), expected(z), rtol=0, atol=16 * bound)  # z lies further


# What a fixed recipe is, in the package and in the reference.
RECIPES = {
    "one-sided": (kd.OneSidedDrift, {}, ref.one_sided, {}),
    "split": (kd.TwoSidedDrift, {}, ref.two_sided, {}),
    "joint": (kd.TwoSidedDrift, {"form": "joint"}, ref.joint, {}),
    "sinkhorn T=1": (kd.SinkhornDrift, {"half_steps": 1}, ref.sinkhorn, {"t": 1}),
    "sinkhorn T=3": (kd.SinkhornDrift, {"half_steps": 3}, ref.sinkhorn, {"t": 3}),
    "sinkhorn T=21": (kd.SinkhornDrift, {"half_steps": 21}, ref.sinkhorn, {"t": 21}),
}


@pytest.mark.parametrize("negatives", [False, True], ids=["", "negatives"])
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("mask", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("velocity", VELOCITIES)
@pytest.mark.parametrize("cost", ALL_COSTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_its_formula(clouds, recipe, cost, velocity, mask, weighted, negatives):
    drift_type, options, reference, extra = RECIPES[recipe]
    short, long = inputs(clouds, weighted, negatives)
    x, y = clouds["x"], clouds["y"]
    tau = 0.3 * ref.mean_cost(x, y, cost)
    p = ref.problem(x, y, tau, cost=cost, mask=mask, **short)
    drift = drift_type(tau, cost=as_cost(cost), velocity=velocity, mask_self=mask, **options)
    field = drift.fit(x, y, **long)
    passes = options.get("half_steps", 2)
    agree(field, reference(p, velocity=velocity, **extra), p, clouds["z"], passes)
    assert torch.equal(drift(x, y, **long), field())


@pytest.mark.parametrize("negatives", [False, True], ids=["", "negatives"])
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("velocity", VELOCITIES)
@pytest.mark.parametrize("cost", ALL_COSTS)
def test_converged_sinkhorn_is_the_optimal_coupling(clouds, cost, velocity, weighted, negatives):
    short, long = inputs(clouds, weighted, negatives)
    x, y = clouds["x"], clouds["y"]
    tau = 0.3 * ref.mean_cost(x, y, cost)
    p = ref.problem(x, y, tau, cost=cost, **short)
    field = kd.SinkhornDrift(tau, tol=1e-11, cost=as_cost(cost), velocity=velocity).fit(
        x, y, **long
    )
    expected = ref.sinkhorn(p, velocity=velocity)
    # A marginal within 1e-11; at this τ the coupling amplifies it less than a thousandfold.
    reach = ref.spread(x, y, p.z)
    torch.testing.assert_close(field(), expected(), rtol=0, atol=1e-8 * reach)
    torch.testing.assert_close(field(clouds["z"]), expected(clouds["z"]), rtol=0, atol=1e-8 * reach)


@pytest.mark.parametrize("negatives", [False, True], ids=["", "negatives"])
@pytest.mark.parametrize("mask", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("floor", [1e-3, 0.05])
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_joint_floor_is_pointwise(clouds, backend, floor, mask, negatives):
    x, y = clouds["x"], clouds["y"]
    short = {"u": clouds["u"]} if negatives else {}
    long = {"negatives": clouds["u"]} if negatives else {}
    tau = 0.1 * ref.mean_cost(x, y, "half_squared")
    p = ref.problem(x, y, tau, mask=mask, **short)
    drift = kd.TwoSidedDrift(tau, form="joint", floor=floor, mask_self=mask, backend=backend)
    expected = ref.joint(p, floor=floor)
    agree(drift.fit(x, y, **long), expected, p, clouds["z"], 2)
    plain = ref.joint(p)()
    assert float((expected() - plain).abs().max()) > 1e-3  # or the floor was not at work


def test_joint_written_out_as_algorithm_2(clouds):
    """Deng et al., Algorithm 2, in its own words: one matrix over the columns [y ; x]."""
    x, y, tau = clouds["x"], clouds["y"], 0.8
    logits = -torch.cdist(x, torch.cat([y, x]), compute_mode="donot_use_mm_for_euclid_dist") / tau
    logits[:, M:].fill_diagonal_(-torch.inf)
    a = (torch.softmax(logits, 1) * torch.softmax(logits, 0)).sqrt()
    plus, minus = a[:, :M], a[:, M:]
    w_plus = plus * minus.sum(1, keepdim=True)
    w_minus = minus * plus.sum(1, keepdim=True)
    expected = w_plus @ y - w_minus @ x
    got = kd.TwoSidedDrift(tau, form="joint", cost="euclidean")(x, y)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


ALL_DRIFTS = {
    "one-sided": lambda tau, **o: kd.OneSidedDrift(tau, **o),
    "split": lambda tau, **o: kd.TwoSidedDrift(tau, **o),
    "joint": lambda tau, **o: kd.TwoSidedDrift(tau, form="joint", **o),
    "joint, floor": lambda tau, **o: kd.TwoSidedDrift(tau, form="joint", floor=0.01, **o),
    "sinkhorn T=9": lambda tau, **o: kd.SinkhornDrift(tau, half_steps=9, **o),
    "sinkhorn": lambda tau, **o: kd.SinkhornDrift(tau, tol=1e-11, **o),
}


@pytest.mark.parametrize("make", ALL_DRIFTS.values(), ids=ALL_DRIFTS)
def test_negatives_of_weight_zero_are_not_there(clouds, make):
    x, y, u = clouds["x"], clouds["y"], clouds["u"]
    drift = make(0.9)
    none = drift(x, y)
    zero = drift(x, y, negatives=u, negative_weights=torch.zeros(U))
    # Sinkhorn solves the two by different half_steps, both to 1e-11.
    torch.testing.assert_close(zero, none, rtol=0, atol=1e-9)
    some = drift(x, y, negatives=u, negative_weights=torch.tensor([0.0, 2.0, 0.0, 1.0]))
    kept = drift(x, y, negatives=u[1::2], negative_weights=torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(some, kept, rtol=0, atol=1e-9)
    assert float((some - none).abs().max()) > 1e-3


@pytest.mark.parametrize("make", ALL_DRIFTS.values(), ids=ALL_DRIFTS)
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_batch_axes_are_independent_problems(cloud, make, backend):
    x, y, u = cloud(0, 2, 3, 6, 2), cloud(1, 2, 3, 8, 2) + 1, cloud(2, 2, 3, 4, 2)
    a, b, w = cloud(3, 2, 3, 6).exp(), cloud(4, 2, 3, 8).exp(), cloud(5, 2, 3, 4).exp()
    a[0, 1, 2], b[1, 2, 0], w[0, 0, 0] = 0, 0, 0
    drift = make(0.6, backend=backend)
    long = {"x_weights": a, "y_weights": b, "negatives": u, "negative_weights": w}
    field = drift.fit(x, y, **long)
    got = field()
    z = cloud(6, 2, 3, 5, 2)
    at_z = field(z)
    assert got.shape == x.shape and at_z.shape == z.shape
    for i in range(2):
        for j in range(3):
            single = drift.fit(x[i, j], y[i, j], **{k: v[i, j] for k, v in long.items()})
            # Converged entries stop at different half_steps, both within 1e-11.
            torch.testing.assert_close(got[i, j], single(), rtol=0, atol=1e-9)
            torch.testing.assert_close(at_z[i, j], single(z[i, j]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", ALL_DRIFTS.values(), ids=ALL_DRIFTS)
def test_points_of_weight_zero_are_not_there(clouds, make):
    x, y, u, a, b = (clouds[k] for k in "xyuab")
    drift = make(0.9)
    got = drift(x, y, x_weights=a, y_weights=b, negatives=u)
    assert torch.isfinite(got).all()  # at the weightless particles too
    i, j = a > 0, b > 0
    kept = drift(x[i], y[j], x_weights=a[i], y_weights=b[j], negatives=u)
    torch.testing.assert_close(got[i], kept, rtol=0, atol=1e-9)


SIZES = {0: (6, 4, 3), 1: (3, 9, 2), 2: (1, 2, 5), 3: (5, 1, 1)}


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("negatives", [False, True], ids=["", "negatives"])
@pytest.mark.parametrize("make", ALL_DRIFTS.values(), ids=ALL_DRIFTS)
@pytest.mark.parametrize("backend", ["auto", "dense", "tiled"])
def test_ragged_labels_are_one_call_a_class(cloud, make, backend, negatives, weighted):
    generator = torch.Generator().manual_seed(0)

    def labelled(seed, column, extra=()):
        labels = [c for c, sizes in SIZES.items() for _ in range(sizes[column])] + list(extra)
        labels = torch.tensor(labels)[torch.randperm(len(labels), generator=generator)]
        return (
            cloud(seed, len(labels), 2) + labels[:, None] / 2,
            labels,
            cloud(seed + 9, len(labels)),
        )

    x, x_labels, a = labelled(0, 0)
    y, y_labels, b = labelled(1, 1, extra=(7, 7, 7))  # a class without particles
    u, u_labels, w = labelled(2, 2)
    a, b, w = a.exp(), b.exp(), w.exp()
    drift = make(0.8, backend=backend)

    def call(class_=None):
        def of(values, labels):
            return values if class_ is None else values[labels == class_]

        options = {}
        if weighted:
            options |= {"x_weights": of(a, x_labels), "y_weights": of(b, y_labels)}
        if negatives:
            options |= {"negatives": of(u, u_labels)}
            if weighted:
                options |= {"negative_weights": of(w, u_labels)}
        if class_ is None:
            options |= {"x_labels": x_labels, "y_labels": y_labels}
            if negatives:
                options |= {"negative_labels": u_labels}
        return drift(of(x, x_labels), of(y, y_labels), **options)

    got = call()
    for c in SIZES:
        # Classes may be padded into one batch and stop at different half_steps, all within 1e-11.
        torch.testing.assert_close(got[x_labels == c], call(c), rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", ALL_DRIFTS.values(), ids=ALL_DRIFTS)
def test_a_class_without_negatives_has_none(cloud, make):
    x, y, u = cloud(0, 6, 2), cloud(1, 8, 2), cloud(2, 3, 2)
    x_labels, y_labels = torch.tensor([0, 1] * 3), torch.tensor([0, 1] * 4)
    drift = make(0.8)
    got = drift(
        x,
        y,
        negatives=u,
        x_labels=x_labels,
        y_labels=y_labels,
        negative_labels=torch.zeros(3, dtype=torch.long),
    )
    torch.testing.assert_close(got[1::2], drift(x[1::2], y[1::2]), rtol=0, atol=1e-9)
    torch.testing.assert_close(got[::2], drift(x[::2], y[::2], negatives=u), rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", ALL_DRIFTS.values(), ids=ALL_DRIFTS)
@pytest.mark.parametrize("velocity", VELOCITIES)
@pytest.mark.parametrize("cost", ["half_squared", "euclidean", "student"])
def test_field_is_differentiable_anywhere(cloud, make, velocity, cost):
    if velocity == "gradient" and getattr(make(1.0), "floor", None):
        return  # refused: a floored coupling has no gradient velocity
    x, y, z = cloud(0, 6, 2), cloud(1, 8, 2) + 1, cloud(2, 4, 2)
    field = make(0.9, cost=as_cost(cost), velocity=velocity).fit(x, y)
    z.requires_grad_()
    assert torch.autograd.gradcheck(field, (z,), eps=1e-6, atol=1e-6)


def test_curl_free_fields_have_symmetric_jacobians_and_others_do_not(cloud):
    """Symmetric Jacobians: the field is a gradient."""
    x, y, z = cloud(0, 9, 2), cloud(1, 12, 2) + 0.5, cloud(2, 1, 2)

    def curl(drift):
        field = drift.fit(x, y)
        jacobian = torch.autograd.functional.jacobian(lambda q: field(q)[0], z)[:, 0]
        return abs(float(jacobian[0, 1] - jacobian[1, 0]))

    assert curl(kd.OneSidedDrift(0.5)) < 1e-13
    assert curl(kd.SinkhornDrift(0.5, tol=1e-12)) < 1e-13
    assert curl(kd.OneSidedDrift(0.5, cost="euclidean", velocity="gradient")) < 1e-13
    assert curl(kd.OneSidedDrift(0.5, cost="euclidean")) > 1e-3
    assert curl(kd.TwoSidedDrift(0.5, form="joint")) > 1e-4


def in_single(drift):
    """A fixed number of half-steps where the tolerance is out of reach of single precision."""
    converging = isinstance(drift, kd.SinkhornDrift) and drift.half_steps is None
    return dataclasses.replace(drift, half_steps=41) if converging else drift


@pytest.mark.parametrize("make", ALL_DRIFTS.values(), ids=ALL_DRIFTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_and_returned_in_its_dtype(cloud, make, dtype):
    x, y, z = cloud(0, 6, 2, dtype=dtype), cloud(1, 8, 2, dtype=dtype), cloud(2, 5, 2, dtype=dtype)
    drift = in_single(make(0.8))
    field, single = drift.fit(x, y), drift.fit(x.float(), y.float())
    assert field().dtype == dtype and field(z).dtype == dtype
    assert torch.equal(field(), single().to(dtype))
    assert torch.equal(field(z), single(z.float()).to(dtype))


@pytest.mark.parametrize("make", ALL_DRIFTS.values(), ids=ALL_DRIFTS)
def test_single_precision_is_the_reference_to_its_rounding(clouds, make):
    x, y = clouds["x"].float(), clouds["y"].float()
    drift = in_single(make(0.9))
    got, exact = drift(x, y), drift(x.double(), y.double())
    assert got.dtype == torch.float32
    p = ref.problem(x, y, 0.9)
    bound = ref.tolerance(p, torch.float32, passes=2)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=bound)


def test_the_joint_field_lives_where_products_of_softmaxes_vanish(cloud):
    """A tight cloud of particles many temperatures away from the data, as networks begin."""
    x, y = 0.01 * cloud(0, 20, 2), cloud(1, 30, 2) + 6
    drift = kd.TwoSidedDrift(0.25, form="joint", cost="squared")
    logits = -(ref.pairs(x, torch.cat([y, x]), "squared") / 0.25).float()
    logits[:, 30:].fill_diagonal_(-torch.inf)
    stored = (logits.softmax(1) * logits.softmax(0)).sqrt()
    assert stored[:, :30].max() == 0  # single precision has nothing left to be pulled by
    expected = ref.joint(ref.problem(x, y, 0.25, cost="squared", mask=True))()
    found = drift(x.float(), y.float()).double()
    assert expected.norm() > 0
    assert (found - expected).norm() < 1e-4 * expected.norm()
