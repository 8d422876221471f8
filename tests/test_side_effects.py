"""What the library leaves behind: nothing."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch

import keodrift as kd
from keodrift.costs import mahalanobis
from keodrift.precision import _products, full_precision
from keodrift.reductions import gibbs_kernel
from keodrift.reductions.engines.keops import compiler


def run(code: str) -> str:
    """Runs a script in a fresh interpreter and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_quiet_and_loads_nothing_heavy():
    printed = run(
        """
        import sys
        import torch
        torch.cuda.init = torch._C._cuda_init = lambda: sys.exit("CUDA was touched")
        import keodrift
        heavy = "pykeops keopscore geomloss ot sklearn scipy matplotlib hydra omegaconf yaml"
        assert not sys.modules.keys() & set(heavy.split())
        assert not torch.cuda.is_initialized()
        """
    )
    assert printed == ""


def test_small_problems_never_load_keops():
    run(
        """
        import sys
        import torch
        import keodrift as kd
        x, y = torch.randn(50, 2), torch.randn(60, 2)
        for drift in (kd.OneSidedDrift(0.1), kd.TwoSidedDrift(0.1), kd.SinkhornDrift(0.1)):
            drift(x, y)
        kd.sinkhorn_divergence(x, y, 0.1)
        kd.choose_backend(100, 100, 2)
        assert "pykeops" not in sys.modules and "geomloss" not in sys.modules
        """
    )


def test_without_a_compiler_one_warning_and_another_engine_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", shutil.which("false") or "false")
    monkeypatch.setenv("KEOPS_CACHE_FOLDER", str(tmp_path))
    run(
        """
        import warnings
        import torch
        import keodrift as kd
        x, y = torch.randn(50, 2), torch.randn(60, 2)
        stored = kd.SinkhornDrift(0.5, backend="dense")(x, y)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                v = kd.SinkhornDrift(0.5, backend="keops")(x, y)
                assert float((v - stored).abs().max()) < 1e-3
        ours = [w for w in caught if issubclass(w.category, kd.BackendWarning)]
        assert len(ours) == 1 and "compile" in str(ours[0].message), caught
        assert kd.choose_backend(10**5, 10**5, 6).engine == "tiled"
        """
    )


@pytest.mark.usefixtures("keops")
def test_a_cost_that_keops_cannot_compile_costs_itself_alone():
    run(
        """
        import warnings
        import torch
        import keodrift as kd
        from keodrift.reductions import gibbs_kernel
        from keodrift.reductions.engines.keops import compiler

        def largest(x, y):  # LazyTensors have no amax
            return (x - y).abs().amax(-1)

        def refusing(x, y):
            if not isinstance(x, torch.Tensor):
                raise ValueError("no symbols please")
            return ((x - y) ** 2).sum(-1)

        torch.manual_seed(0)
        x, y, bias = torch.randn(50, 2), torch.randn(60, 2), torch.zeros(60)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for cost in (largest, refusing, largest):
                streamed, stored = (gibbs_kernel(x, y, cost, backend=b) for b in ("keops", "dense"))
                # A log-mass near 0 has no relative error to speak of.
                assert torch.allclose(streamed.log_mass(bias), stored.log_mass(bias), atol=1e-5)
                assert torch.allclose(streamed.barycentre(bias), stored.barycentre(bias), atol=1e-5)
        said = [str(w.message) for w in caught if issubclass(w.category, kd.BackendWarning)]
        assert len(said) == 2, said
        assert "largest (AttributeError" in said[0] and "refusing (ValueError: no sym" in said[1]
        assert "g++" not in said[0] + said[1]
        assert compiler.failure() is None
        broken = len(compiler.failed)
        gibbs_kernel(x, y, backend="keops").log_mass(bias)
        assert len(compiler.failed) == broken
        assert kd.choose_backend(10**5, 10**5, 6).engine == "keops"
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked on this system")
def test_a_child_forked_while_another_thread_compiles_does_not_wait_for_it():
    run(
        """
        import os, threading
        import keodrift
        from keodrift.reductions.engines.keops import compiler

        held, done = threading.Event(), threading.Event()

        def compiling():
            with compiler._lock:
                held.set()
                done.wait()

        threading.Thread(target=compiling, daemon=True).start()
        held.wait()
        child = os.fork()
        if child == 0:
            os._exit(0 if compiler._lock.acquire(blocking=False) else 1)
        assert os.waitpid(child, 0)[1] == 0
        done.set()
        """
    )


@pytest.mark.usefixtures("keops")
def test_costs_that_compile_to_one_file_wait_for_each_other(monkeypatch):
    """Processes that compile one file at a time under two names would load it half written."""
    named = []
    monkeypatch.setattr(
        compiler, "session", lambda name, *_, **__: named.append(name) or contextlib.nullcontext()
    )
    for cost in ("half_squared", "squared"):
        gibbs_kernel(X, Y, cost, backend="keops").log_mass(torch.zeros(9))
    assert len(named) == 2 and len(set(named)) == 1


def test_torn_indices_of_keops_are_set_aside(tmp_path, monkeypatch):
    monkeypatch.setenv("KEOPS_CACHE_FOLDER", str(tmp_path))
    load = """
        import warnings
        from keodrift.reductions.engines.keops import compiler
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compiler.load()
        print(*[f"{w.category.__name__}: {w.message}" for w in caught])
        """
    assert "torn" not in run(load)
    indices = sorted(tmp_path.glob("*/*_cache.pkl"))
    assert len(indices) == 2
    for index, left in zip(indices, (b"", b"\x80\x04}torn"), strict=True):
        index.write_bytes(left)
    said = run(load)
    assert said.count("BackendWarning") == 2
    assert all(str(index.with_suffix(".torn")) in said for index in indices)
    assert "torn" not in run(load)


def test_a_device_that_fails_is_no_formula_that_does_not_compile():
    known = dict(compiler.failed)
    for said in ("[KeOps] Cuda error.", "CUDA error: an illegal memory access was encountered"):
        with pytest.raises(kd.errors.EngineError, match="keops engine failed on cuda"):
            compiler.report_failure(RuntimeError(said), "formula", kd.costs.squared, "cuda")
    assert compiler.failed == known and compiler.failure("cuda") is None


@pytest.mark.usefixtures("keops")
def test_keops_leaves_the_floating_point_state_alone():
    """Modules built for fast exponentials may switch the process to flush-to-zero."""
    printed = run(
        """
        import torch
        import keodrift as kd
        from keodrift.reductions import gibbs_kernel

        tiny, factor = 1e-308, 1e-5
        wide = torch.full((1 << 21,), 1e-30)  # enough for every thread of torch

        def check(when):
            assert tiny * factor != 0.0, when
            assert bool((wide * 1e-10 != 0).all()), when
            assert float(torch.tensor(tiny, dtype=torch.float64) * factor) != 0.0, when

        check("before")
        kernel = gibbs_kernel(torch.randn(99, 2), torch.randn(98, 2), "half_squared", 0.5,
                              backend="keops")
        mass = kernel.log_mass(torch.zeros(98))
        check("after a log-sum-exp")
        kernel.log_mass(torch.zeros(98), mass)
        check("after a plain sum")
        kernel.barycentre(torch.zeros(98), guess=mass)
        check("after a barycentre")
        """
    )
    assert printed == ""


@pytest.mark.usefixtures("keops")
def test_keops_respects_a_process_that_flushes_denormals():
    run(
        """
        import torch
        from keodrift.reductions import gibbs_kernel
        if not torch.set_flush_denormal(True):
            raise SystemExit(0)  # this processor cannot
        kernel = gibbs_kernel(torch.randn(99, 2), torch.randn(98, 2), "half_squared", 0.5,
                              backend="keops")
        kernel.log_mass(torch.zeros(98), kernel.log_mass(torch.zeros(98)))
        tiny, factor = 1e-308, 1e-5
        assert tiny * factor == 0.0
        """
    )


X, Y, U = torch.randn(6, 2), torch.randn(9, 2), torch.randn(4, 2)
A, B, W = torch.rand(6) + 0.1, torch.rand(9) + 0.1, torch.rand(4)
GIVEN = {"x_weights": A, "y_weights": B, "negatives": U, "negative_weights": W}
SINKHORN = kd.SinkhornDrift(0.5)
LABELS = {"x_labels": torch.tensor([0, 1] * 3), "y_labels": torch.tensor([0, 1, 0] * 3)}


def kernel(backend):
    return gibbs_kernel(X, Y, "half_squared", 0.5, backend=backend)


def distances(x, a, y, b):
    return lambda z: (b * torch.cdist(z, y)).sum(-1) - (a * torch.cdist(z, x)).sum(-1)


CALLS = {
    "one-sided": lambda: kd.OneSidedDrift(0.5)(X, Y, **GIVEN),
    "split": lambda: kd.TwoSidedDrift(0.5)(X, Y, **GIVEN),
    "joint": lambda: kd.TwoSidedDrift(0.5, form="joint")(X, Y, **GIVEN),
    "floor": lambda: kd.TwoSidedDrift(0.5, form="joint", floor=1e-3)(X, Y, **GIVEN),
    "gradient velocity": lambda: kd.OneSidedDrift(0.5, cost="euclidean", velocity="gradient")(X, Y),
    "sinkhorn": lambda: SINKHORN(X, Y, **GIVEN),
    "half-steps": lambda: kd.SinkhornDrift(0.5, half_steps=5)(X, Y, **GIVEN),
    "kale": lambda: kd.KALEDrift(0.5)(X, Y, **GIVEN),
    "chi-square": lambda: kd.ChiSquareDrift(0.5)(X, Y, **GIVEN),
    "witness": lambda: kd.WitnessDrift(distances)(X, Y, **GIVEN),
    "critic": lambda: kd.CriticDrift(steps=2, penalty="gradient")(X, Y, **GIVEN),
    "warm": lambda: SINKHORN(X, Y, start=SINKHORN.fit(X, Y)),
    "labels": lambda: SINKHORN(X, Y, **LABELS),
    "field": lambda: SINKHORN.fit(X, Y)(X.new_zeros(3, 2)),
    "loss": lambda: kd.drift_loss(X, Y, [SINKHORN, kd.OneSidedDrift(0.1)], normalize=True),
    "scaled loss": lambda: kd.drift_loss(X, Y, SINKHORN, scale_features=True, **GIVEN),
    "divergence": lambda: kd.sinkhorn_divergence(X, Y, 0.5, x_weights=A, y_weights=B),
    "dense": lambda: kernel("dense").log_mass(X.new_zeros(9)),
    "tiled": lambda: kernel("tiled").mean_cost_gradient(X.new_zeros(9)),
    "choice": lambda: kd.choose_backend(10, 10, 2),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        [str(part) for part in np.random.get_state()],
    )


@every_call
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_process_state_is_as_it_was(call, grad):
    with torch.set_grad_enabled(grad):
        before = state()
        call()
        assert state() == before


@every_call
def test_the_default_dtype_plays_no_part(call):
    before = call()
    torch.set_default_dtype(torch.float64)
    try:
        after = call()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    if isinstance(before, torch.Tensor) and before.shape != (3, 2):  # the field's own query
        assert after.dtype == before.dtype
        assert torch.equal(after, before)


@every_call
def test_the_default_device_plays_no_part(call):
    before = call()
    torch.set_default_device("meta")
    try:
        after = call()
    finally:
        torch.set_default_device(None)
    if isinstance(before, torch.Tensor):
        assert torch.equal(after, before)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "choice"])  # which does none
def test_state_survives_an_error(name, monkeypatch):
    """An exception in the middle of the work changes no modes either."""

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    for verb in ("logsumexp", "softmax", "exp", "cdist"):
        monkeypatch.setattr(torch, verb, fail)
    for verb in ("exp_", "sum", "mean", "aminmax"):
        monkeypatch.setattr(torch.Tensor, verb, fail)
    before = state()
    with pytest.raises(KeyboardInterrupt):
        CALLS[name]()
    assert state() == before


@every_call
def test_repeated_calls_give_the_same_bits(call):
    first, second = call(), call()
    same = first == second if not isinstance(first, torch.Tensor) else torch.equal(first, second)
    assert same


@every_call
def test_inputs_are_not_modified(call):
    tensors = [X, Y, U, A, B, W, *LABELS.values()]
    before = [(t.clone(), t._version) for t in tensors]
    call()
    for tensor, (copy, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy) and tensor._version == version
        assert tensor.grad is None and not tensor.requires_grad


@pytest.mark.parametrize(
    "drift",
    [
        kd.OneSidedDrift(0.5),
        kd.OneSidedDrift(0.5, cost="euclidean", velocity="gradient"),
        kd.TwoSidedDrift(0.5),
        kd.TwoSidedDrift(0.5, form="joint"),
        kd.TwoSidedDrift(0.5, form="joint", floor=1e-3),
        kd.KALEDrift(0.5),
        SINKHORN,
    ],
)
def test_outputs_have_no_graph(drift):
    x, y, u = (t.clone().requires_grad_() for t in (X, Y, U))
    a = A.clone().requires_grad_()
    v = drift(x, y, negatives=u, x_weights=a)
    assert not v.requires_grad and v.grad_fn is None
    field = drift.fit(x, y, negatives=u, x_weights=a)
    assert not field().requires_grad
    # Nor does a field hold on to the graph that its clouds came from.
    assert not field.particles.requires_grad
    assert not field.data.points.requires_grad and not field.model.points.requires_grad
    assert not field(torch.zeros(3, 2)).requires_grad
    assert x.grad is None and y.grad is None
    labelled = drift(x, y, **LABELS)
    assert not labelled.requires_grad


def test_only_the_particles_get_a_gradient_from_the_loss():
    x, y, u = (t.clone().requires_grad_() for t in (X, Y, U))
    kd.drift_loss(x, y, SINKHORN, negatives=u).backward()
    assert x.grad is not None and y.grad is None and u.grad is None


def test_outputs_share_no_memory_with_inputs():
    for drift in (kd.OneSidedDrift(0.5), SINKHORN):
        x = X.clone()
        field = drift.fit(x, Y)
        before = field()
        before_again = drift(x, Y)
        field().zero_()
        assert torch.equal(field(), before) and torch.equal(drift(x, Y), before_again)


def test_a_field_survives_changes_of_its_clouds():
    """Particles are moved in place by many a training loop; a fitted field must not notice."""
    for drift in (kd.OneSidedDrift(0.5), kd.TwoSidedDrift(0.5), SINKHORN):
        x, y = X.clone(), Y.clone()
        z = torch.zeros(3, 2)
        field = drift.fit(x, y)
        v, at_z = field(), field(z)
        x += 1
        y *= 2
        assert torch.equal(field(z), at_z) and torch.equal(field(), v)


@contextlib.contextmanager
def reduced_products():
    """What training scripts choose for their networks; TF32 on a GPU, bfloat16 on some CPUs."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(kept)


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "products": reduced_products,
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_the_precision_of_networks_does_not_reach_inside(mode, backend):
    random = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(n, 40, generator=random) for n in (200, 300, 100))
    recipes = [
        kd.OneSidedDrift(9.0, backend=backend),
        kd.OneSidedDrift(1.0, cost="euclidean", velocity="gradient", backend=backend),
        kd.TwoSidedDrift(9.0, form="joint", backend=backend),
        kd.TwoSidedDrift(9.0, form="joint", floor=1e-3, backend=backend),
        kd.SinkhornDrift(9.0, half_steps=5, backend=backend),
        kd.SinkhornDrift(9.0, backend=backend),
        kd.OneSidedDrift(9.0, cost=mahalanobis(torch.linspace(1, 2, 40).diag()), backend=backend),
        kd.SinkhornDrift(0.3, cost="cosine", relative=True, half_steps=3, backend=backend),
    ]

    def everything():
        fields = [recipe.fit(x, y) for recipe in recipes]
        own, elsewhere = [field() for field in fields], [field(z) for field in fields]
        neighbours = [kd.effective_neighbours(field) for field in fields]
        divergence = kd.sinkhorn_divergence(x, y, 9.0, backend=backend)
        return [*own, *elsewhere, *neighbours, divergence]

    expected = everything()
    with mode():
        before = state()
        got = everything()
        assert state() == before
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_reduced_products_are_turned_off_where_torch_has_one_setting_for_all(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "matmul", None)
    test_the_precision_of_networks_does_not_reach_inside(reduced_products, "tiled")


@pytest.mark.parametrize("one_setting", [False, True])
def test_threads_that_leave_out_of_order_restore_the_precision(one_setting, monkeypatch):
    if one_setting:
        monkeypatch.setattr(torch.backends.mkldnn, "matmul", None)
    entered, left = threading.Event(), threading.Event()

    def other():
        with full_precision("cpu"):
            entered.set()
            left.wait()

    thread = threading.Thread(target=other)
    with reduced_products():
        before, autocast = _products("cpu")[1](), torch.is_autocast_enabled("cpu")
        with full_precision("cpu"):
            thread.start()
            entered.wait()
        assert _products("cpu")[1]() == _products("cpu")[3]  # the other thread is still inside
        left.set()
        thread.join()
        assert _products("cpu")[1]() == before
        assert torch.is_autocast_enabled("cpu") == autocast


def test_full_precision_entered_again_ends_where_it_was_first_entered():
    with reduced_products():
        before, exact = _products("cpu")[1](), _products("cpu")[3]
        with full_precision("cpu"):
            with torch.autocast("cpu", torch.bfloat16), full_precision("cpu"):
                assert not torch.is_autocast_enabled("cpu")
            for _ in range(2):
                with full_precision("cpu"):
                    assert not torch.is_autocast_enabled("cpu")
                assert _products("cpu")[1]() == exact
        assert _products("cpu")[1]() == before
        with full_precision("cpu"):  # once left, it has to be entered in earnest
            assert _products("cpu")[1]() == exact


@every_call
def test_calls_work_in_inference_mode(call):
    expected = call()
    with torch.inference_mode():
        got = call()
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "drift",
    [
        SINKHORN,
        kd.SinkhornDrift(0.5, reach=1.0, masses="gradient"),
        kd.SlicedWassersteinDrift(directions=4),
        kd.OneSidedDrift(0.5, cost="euclidean"),
    ],
    ids=str,
)
def test_a_field_of_inference_mode_can_be_differentiated_outside_of_it(drift):
    def slope(field):
        z = X.clone().requires_grad_()
        field(z).square().sum().backward()
        return z.grad

    expected = slope(drift.fit(X, Y))
    with torch.inference_mode():
        field = drift.fit(X.clone(), Y.clone())
    torch.testing.assert_close(slope(field), expected)


def test_drifts_and_fields_can_be_pickled():
    """Worker processes get their drift this way."""
    drift = pickle.loads(pickle.dumps(SINKHORN))
    assert torch.equal(drift(X, Y), SINKHORN(X, Y))
    field = SINKHORN.fit(X, Y)
    assert torch.equal(pickle.loads(pickle.dumps(field))(), field())


def test_library_prints_nothing(capsys):
    for call in CALLS.values():
        call()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""
