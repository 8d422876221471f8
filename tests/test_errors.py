"""Bad input: a typed error that names the argument, before any computation."""

from __future__ import annotations

import dataclasses
import math
import pickle
import warnings

import pytest
import torch

import keodrift as kd
import keodrift.reductions.kernel as kernel_module
from keodrift.errors import (
    ArgumentError,
    CostError,
    DeviceError,
    DivergedError,
    DtypeError,
    MissingDependencyError,
    NonFiniteError,
    OptionError,
    ShapeError,
    TemperatureError,
    WeightsError,
)

X, Y, U = torch.randn(5, 2), torch.randn(7, 2), torch.randn(3, 2)
NAN, INF = math.nan, math.inf


FIELD = kd.SinkhornDrift(0.5).fit(X, Y)


@pytest.fixture(autouse=True)
def no_computation(monkeypatch):
    """Any reduction over pairs would end the test with another error than the expected one."""

    def refuse(self, *args, **kwargs):
        raise AssertionError("a reduction ran before the input was checked")

    for verb in ("log_mass", "barycentre", "mean_cost_gradient", "coupling"):
        monkeypatch.setattr(kernel_module.GibbsKernel, verb, refuse)


def refused(error, argument, call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error) as caught:
            call()
    assert isinstance(caught.value, ArgumentError) and isinstance(caught.value, ValueError)
    assert caught.value.argument == argument
    assert caught.value.got and caught.value.needs
    assert argument in str(caught.value)


def filled(shape, value, index=(0, 0)):
    out = torch.randn(shape)
    out[index] = value
    return out


CLOUDS = {
    "rank 1": (ShapeError, torch.randn(2)),
    "rank 0": (ShapeError, torch.tensor(1.0)),
    "no points": (ShapeError, torch.randn(0, 2)),
    "no coordinates": (ShapeError, torch.randn(5, 0)),
    "NaN": (NonFiniteError, filled((5, 2), NAN)),
    "inf": (NonFiniteError, filled((5, 2), INF)),
    "-inf": (NonFiniteError, filled((5, 2), -INF)),
    "integers": (DtypeError, torch.zeros(5, 2, dtype=torch.int64)),
    "booleans": (DtypeError, torch.zeros(5, 2, dtype=torch.bool)),
    "complex": (DtypeError, torch.zeros(5, 2, dtype=torch.complex64)),
    "a list": (DtypeError, [[0.0, 1.0]]),
    "an array": (DtypeError, torch.zeros(5, 2).numpy()),
    "None": (DtypeError, None),
    "sparse": (DtypeError, torch.eye(5, 2).to_sparse()),
    "float8": (DtypeError, torch.zeros(5, 2).to(torch.float8_e4m3fn)),
    "meta": (DeviceError, torch.zeros(5, 2, device="meta")),
}
PAIRED = {
    "another dimension": (ShapeError, torch.randn(5, 3)),
    "batch axes": (ShapeError, torch.randn(1, 5, 2)),
    "another dtype": (DtypeError, torch.randn(5, 2, dtype=torch.float64)),
    "half precision": (DtypeError, torch.randn(5, 2).half()),
    "another device": (DeviceError, torch.randn(5, 2, device="meta")),
}
DRIFTS = [
    kd.OneSidedDrift(0.5),
    kd.TwoSidedDrift(0.5),
    kd.TwoSidedDrift(0.5, form="joint", floor=1e-3),
    kd.SinkhornDrift(0.5),
]
every_drift = pytest.mark.parametrize("drift", DRIFTS, ids=lambda d: type(d).__name__)


@every_drift
@pytest.mark.parametrize(("error", "bad"), CLOUDS.values(), ids=CLOUDS)
def test_clouds(drift, error, bad):
    for call in (drift, drift.fit, lambda *a: kd.drift_loss(*a, drift)):
        refused(error, "x", lambda call=call: call(bad, Y))
        if not (isinstance(bad, torch.Tensor) and bad.dim() < 2):
            refused(error, "y", lambda call=call: call(X, bad))
    if bad is not None:
        refused(error, "negatives", lambda: drift(X, Y, negatives=bad))


@every_drift
@pytest.mark.parametrize(("error", "bad"), PAIRED.values(), ids=PAIRED)
def test_clouds_that_disagree(drift, error, bad):
    refused(error, "y", lambda: drift(X, bad))
    refused(error, "negatives", lambda: drift(X, Y, negatives=bad))


def test_batch_axes_must_be_equal_and_are_not_broadcast():
    refused(ShapeError, "y", lambda: kd.OneSidedDrift(1.0)(torch.randn(3, 5, 2), Y))
    refused(
        ShapeError, "y", lambda: kd.OneSidedDrift(1.0)(torch.randn(3, 5, 2), torch.randn(2, 5, 2))
    )


@every_drift
@pytest.mark.parametrize("name", ["x_weights", "y_weights", "negative_weights"])
def test_weights(drift, name):
    n = {"x_weights": 5, "y_weights": 7, "negative_weights": 3}[name]
    bad = {
        "negative": (WeightsError, torch.tensor([-0.1] + [1.0] * (n - 1))),
        "NaN": (WeightsError, torch.tensor([NAN] + [1.0] * (n - 1))),
        "inf": (WeightsError, torch.tensor([INF] + [1.0] * (n - 1))),
        "too many": (ShapeError, torch.ones(n + 1)),
        "a column": (ShapeError, torch.ones(n, 1)),
        "a scalar": (ShapeError, torch.tensor(1.0)),
        "another device": (DeviceError, torch.ones(n, device="meta")),
        "complex": (DtypeError, torch.ones(n, dtype=torch.complex64)),
        "a list": (DtypeError, [1.0] * n),
    }
    if name != "negative_weights":  # negatives may all be absent, a cloud may not
        bad["all zero"] = (WeightsError, torch.zeros(n))
    for error, weights in bad.values():
        refused(error, name, lambda w=weights: drift(X, Y, negatives=U, **{name: w}))


def test_weights_that_are_all_zero_in_one_problem_of_a_batch():
    x, y = torch.randn(2, 5, 2), torch.randn(2, 7, 2)
    weights = torch.ones(2, 7)
    weights[1] = 0
    refused(WeightsError, "y_weights", lambda: kd.OneSidedDrift(1.0)(x, y, y_weights=weights))


@every_drift
def test_negative_weights_without_negatives(drift):
    refused(ShapeError, "negative_weights", lambda: drift(X, Y, negative_weights=torch.ones(3)))


@pytest.mark.parametrize("make", [kd.OneSidedDrift, kd.TwoSidedDrift, kd.SinkhornDrift])
@pytest.mark.parametrize("tau", [0, 0.0, -1.0, NAN, INF, -INF, "0.1", None, True, 1j])
def test_temperatures_are_refused_when_the_drift_is_built(make, tau):
    refused(TemperatureError, "tau", lambda: make(tau))
    refused(TemperatureError, "tau", lambda: kd.sinkhorn_divergence(X, Y, tau))


@pytest.mark.parametrize("make", [kd.OneSidedDrift, kd.TwoSidedDrift, kd.SinkhornDrift])
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("cost", "manhattan"),
        ("cost", None),
        ("backend", "numpy"),
        ("backend", None),
        ("velocity", "sideways"),
        ("velocity", None),
        ("mask_self", "yes"),
    ],
)
def test_unknown_options_are_refused_when_the_drift_is_built(make, argument, value):
    refused(OptionError, argument, lambda: make(0.1, **{argument: value}))


@pytest.mark.parametrize(
    ("make", "argument", "options"),
    [
        (kd.TwoSidedDrift, "form", {"form": "both"}),
        (kd.TwoSidedDrift, "floor", {"floor": 1e-3}),
        (kd.TwoSidedDrift, "floor", {"form": "split", "floor": 1e-3}),
        (kd.TwoSidedDrift, "floor", {"form": "joint", "floor": -1e-3}),
        (kd.TwoSidedDrift, "floor", {"form": "joint", "floor": NAN}),
        (kd.TwoSidedDrift, "floor", {"form": "joint", "floor": "1e-3"}),
        (kd.TwoSidedDrift, "floor", {"form": "joint", "floor": 1e-3, "velocity": "gradient"}),
        (kd.SinkhornDrift, "half_steps", {"half_steps": 20}),
        (kd.SinkhornDrift, "half_steps", {"half_steps": 0}),
        (kd.SinkhornDrift, "half_steps", {"half_steps": -3}),
        (kd.SinkhornDrift, "half_steps", {"half_steps": 3.0}),
        (kd.SinkhornDrift, "half_steps", {"half_steps": True}),
        (kd.SinkhornDrift, "half_steps", {"half_steps": "3"}),
        (kd.SinkhornDrift, "drift_tol", {"drift_tol": 0.0}),
        (kd.SinkhornDrift, "drift_tol", {"drift_tol": 0.1, "half_steps": 21}),
        (kd.SinkhornDrift, "tol", {"tol": 0.0}),
        (kd.SinkhornDrift, "tol", {"tol": -1e-3}),
        (kd.SinkhornDrift, "tol", {"tol": NAN}),
        (kd.SinkhornDrift, "tol", {"tol": None}),
        (kd.SinkhornDrift, "max_half_steps", {"max_half_steps": 0}),
        (kd.SinkhornDrift, "max_half_steps", {"max_half_steps": -1}),
        (kd.SinkhornDrift, "max_half_steps", {"max_half_steps": 1.5}),
        (kd.SinkhornDrift, "max_half_steps", {"max_half_steps": True}),
    ],
)
def test_options_of_one_recipe(make, argument, options):
    refused(OptionError, argument, lambda: make(0.1, **options))


def test_an_even_number_of_half_steps_is_told_what_to_do():
    with pytest.raises(OptionError, match=r"odd.*21"):
        kd.SinkhornDrift(0.1, half_steps=20)


@every_drift
@pytest.mark.parametrize(
    "cost",
    [
        lambda x, y: ((x - y) ** 2).sum(),
        lambda x, y: (x - y) ** 2,
        lambda x, y: ((x - y) ** 2).sum(-1, keepdim=True),
        lambda x, y: 0.0,
        lambda x, y: x.distance(y),
        lambda x, y: ((x - y) ** 2).sum(-1) * NAN,
        lambda x, y: ((x - y) ** 2).sum(-1) + INF,
    ],
    ids=["scalar", "no sum", "an axis too many", "number", "raises", "NaN", "inf"],
)
def test_custom_costs_without_one_finite_number_a_pair(drift, cost):
    own = dataclasses.replace(drift, cost=cost)
    refused(CostError, "cost", lambda: own(X, Y))


X_LABELS, Y_LABELS = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 2, 1, 0, 0])


@every_drift
@pytest.mark.parametrize(
    ("error", "argument", "options"),
    [
        (ShapeError, "y_labels", {"y_labels": torch.tensor([0, 1, 1, 1, 1, 0, 0])}),  # no class 2
        (ShapeError, "y_labels", {"y_labels": None}),
        (ShapeError, "x_labels", {"x_labels": None}),
        (ShapeError, "x_labels", {"x_labels": torch.tensor([0, 1])}),
        (ShapeError, "y_labels", {"y_labels": torch.zeros(7, 1, dtype=torch.long)}),
        (DtypeError, "x_labels", {"x_labels": torch.zeros(5)}),
        (DtypeError, "y_labels", {"y_labels": [0] * 7}),
        (DeviceError, "y_labels", {"y_labels": torch.zeros(7, dtype=torch.long, device="meta")}),
        (  # of nobody's class
            ShapeError,
            "negative_labels",
            {"negatives": U, "negative_labels": torch.tensor([-1, 0, 1])},
        ),
        (ShapeError, "negative_labels", {"negative_labels": torch.zeros(3, dtype=torch.long)}),
        (WeightsError, "y_weights", {"y_weights": (Y_LABELS != 1).float()}),
        (WeightsError, "x_weights", {"x_weights": (X_LABELS != 1).float()}),
        (WeightsError, "x_weights", {"x_weights": -torch.ones(5)}),
        (ShapeError, "negative_weights", {"negative_weights": torch.ones(3)}),
    ],
)
def test_labels(drift, error, argument, options):
    options = {"x_labels": X_LABELS, "y_labels": Y_LABELS} | options
    refused(error, argument, lambda: drift(X, Y, **options))


def test_labels_are_for_unbatched_clouds():
    x, y = torch.randn(2, 5, 2), torch.randn(2, 7, 2)
    refused(
        ShapeError,
        "x_labels",
        lambda: kd.OneSidedDrift(1.0)(x, y, x_labels=X_LABELS, y_labels=Y_LABELS),
    )


def test_a_start_is_a_field():
    refused(OptionError, "start", lambda: kd.SinkhornDrift(0.1).fit(X, Y, start=torch.zeros(7)))
    refused(OptionError, "start", lambda: kd.SinkhornDrift(0.1)(X, Y, start="warm"))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.randn(5, 3), torch.randn(7, 3)),
        (X.double(), Y.double()),
        (torch.randn(2, 5, 2), torch.randn(2, 7, 2)),
    ],
    ids=["dimension", "dtype", "batch axes"],
)
def test_a_start_fits_the_clouds(x, y):
    refused(ArgumentError, "start", lambda: kd.SinkhornDrift(0.5).fit(x, y, start=FIELD))


def test_loss_needs_drifts():
    for wrong in ([], None, "sinkhorn", [kd.OneSidedDrift(0.1), "sinkhorn"]):
        refused(OptionError, "drift", lambda wrong=wrong: kd.drift_loss(X, Y, wrong))


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("omega", (0.5, 10, 4)),
        ("omega", (NAN, 10, 4)),
        ("omega", (-1.0, 10, 4)),
        ("n_particles", (2.0, 0, 4)),
        ("n_particles", (2.0, 2.5, 4)),
        ("n_negatives", (2.0, 10, 0)),
    ],
)
def test_guidance_weight(argument, values):
    refused(OptionError, argument, lambda: kd.guidance_weight(*values))


@pytest.mark.parametrize(("error", "bad"), (CLOUDS | PAIRED).values(), ids=CLOUDS | PAIRED)
def test_divergence(error, bad):
    refused(error, "y", lambda: kd.sinkhorn_divergence(X, bad, 0.1))


def test_divergence_options():
    for options in (
        {"cost": "manhattan"},
        {"backend": "numpy"},
        {"tol": 0.0},
        {"max_half_steps": 0},
    ):
        (argument,) = options
        refused(OptionError, argument, lambda o=options: kd.sinkhorn_divergence(X, Y, 0.1, **o))
    refused(
        WeightsError,
        "y_weights",
        lambda: kd.sinkhorn_divergence(X, Y, 0.1, y_weights=-torch.ones(7)),
    )


def bad_queries():
    yield ShapeError, torch.randn(4, 3)
    yield ShapeError, torch.randn(2)
    yield ShapeError, torch.randn(1, 4, 2)
    yield NonFiniteError, filled((4, 2), NAN)
    yield DtypeError, torch.zeros(4, 2, dtype=torch.int64)
    yield DeviceError, torch.zeros(4, 2, device="meta")


@pytest.mark.parametrize(("error", "bad"), list(bad_queries()))
def test_queries_of_a_field(error, bad):
    field = kd.OneSidedDrift(0.5).fit(X, Y)
    refused(error, "z", lambda: field(bad))


def test_errors_cross_processes():
    for error in (
        ArgumentError("tau", -1, "a positive number"),
        MissingDependencyError("scikit-learn", "the digits", "data"),
        DivergedError("the loss is nan", 7),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error)
        assert vars(copy) == vars(error)


@every_drift
@pytest.mark.parametrize("cost", ["half_squared", "euclidean", lambda x, y: (x - y).abs().sum(-1)])
def test_temperatures_at_which_the_logits_leave_the_dtype(drift, cost):
    own = dataclasses.replace(drift, cost=cost, tau=1e-30, **FLOORLESS.get(type(drift), {}))
    refused(TemperatureError, "tau", lambda: own(1e10 * X, 1e10 * Y))
    refused(TemperatureError, "tau", lambda: own(X, Y, negatives=1e10 * U))


FLOORLESS = {kd.TwoSidedDrift: {"floor": None}}


def test_transforms_of_torch_func_are_refused():
    field = FIELD
    for call in (
        lambda: torch.vmap(field)(torch.zeros(3, 4, 2)),
        lambda: torch.func.jacfwd(field)(torch.zeros(4, 2)),
        lambda: torch.vmap(lambda x: kd.OneSidedDrift(0.5)(x, Y))(torch.zeros(3, 4, 2)),
    ):
        with pytest.raises(DtypeError, match="torch.func"):
            call()


def test_fields_can_be_compared():
    assert FIELD == FIELD and kd.SinkhornDrift(0.5) != FIELD
    assert len({FIELD, FIELD.data, FIELD.couplings[0], FIELD.couplings[0].problem}) == 4
