"""The training loop: it learns, it resumes bit for bit, it leaves no half-written file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import time
from random import Random

import numpy as np
import pytest
import torch
from filelock import FileLock

import keodrift as kd
from keodrift.data import get_target, load_digits_latents
from keodrift.errors import (
    ArgumentError,
    DivergedError,
    DtypeError,
    NonFiniteError,
    OptionError,
    RunError,
    ShapeError,
)
from keodrift.files import atomic_path, write_json
from keodrift.metrics import wasserstein_squared
from keodrift.networks import MLP, ConditionalMLP, sample
from keodrift.tasks import latent_batches, target_batches
from keodrift.training import Batch, LateFall, Objective, Trainer

SHIFT = torch.tensor([3.0, -1.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trainer(folder=None, drift=None, objective=None, **options) -> Trainer:
    network = MLP(width=16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    return Trainer(
        network,
        target_batches(network, get_target("eight_gaussians"), 32),
        objective or Objective(drift or kd.SinkhornDrift(0.2, cost="squared")),
        optimizer,
        seeded(3),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
        folder=folder,
        **{"ema": 0.9, "log_every": 1, "checkpoint_every": 10} | options,
    )


def assert_same(one: Trainer, two: Trainer) -> None:
    one, two = one.state, two.state
    for module in ("network", "ema"):
        first, second = getattr(one, module).state_dict(), getattr(two, module).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = (t.optimizer.state_dict()["state"] for t in (one, two))
    assert all(torch.equal(first[i][k], second[i][k]) for i in first for k in first[i])
    assert torch.equal(one.generator.get_state(), two.generator.get_state())
    assert [row["loss"] for row in one.history] == [row["loss"] for row in two.history]


@pytest.mark.parametrize("drift", [kd.OneSidedDrift(0.5), kd.SinkhornDrift(0.2), None])
def test_resumed_run_equals_the_straight_one_bit_for_bit(tmp_path, drift):
    straight = trainer(tmp_path / "a", drift)
    straight.run(20)
    trainer(tmp_path / "b", drift).run(10)
    resumed = trainer(tmp_path / "b", drift)
    resumed.run(20, resume=True)
    assert resumed.step == 20
    assert_same(straight, resumed)
    rows = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(1, 21))


def test_a_run_that_dies_between_checkpoints_resumes_from_the_last_one(tmp_path):
    straight = trainer(tmp_path / "a")
    straight.run(20)
    cut = trainer(tmp_path / "b")
    batches, drawn = cut.state.batches, []

    def failing(generator):
        drawn.append(1)
        if len(drawn) == 17:
            raise KeyboardInterrupt
        return batches(generator)

    cut.state.batches = failing
    with pytest.raises(KeyboardInterrupt):
        cut.run(20)
    resumed = trainer(tmp_path / "b")
    resumed.run(20, resume=True)
    assert_same(straight, resumed)
    rows = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    left = {path.name for path in (tmp_path / "b").iterdir()} - {"tensorboard"}
    assert left == {".lock", "checkpoint.pt", "checkpoint_before.pt", "metrics.jsonl"}


def test_resume_without_a_checkpoint_begins_and_without_a_folder_is_refused(tmp_path):
    assert len(trainer(tmp_path).run(3, resume=True)) == 3
    with pytest.raises(ArgumentError, match="resume"):
        trainer().run(3, resume=True)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    trainer(tmp_path).run(1)
    other = trainer(tmp_path)
    other.state.network = MLP(width=8)
    with pytest.raises(ArgumentError, match="network"):
        other.run(2, resume=True)


def test_a_checkpoint_with_a_scheduler_is_no_state_of_a_run_without(tmp_path):
    trainer(tmp_path).run(1)
    other = trainer(tmp_path)
    other.state.scheduler = None
    with pytest.raises(ArgumentError, match="resume.*scheduler"):
        other.run(2, resume=True)


def same(one, two) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def test_a_damaged_checkpoint_is_refused_by_name_or_read_bit_for_bit(tmp_path):
    path = tmp_path / "checkpoint.pt"
    trainer(tmp_path).run(1)
    intact, expected = path.read_bytes(), torch.load(path)
    random, refused = Random(0), 0
    for _ in range(200):
        damaged, at = bytearray(intact), random.randrange(len(intact))
        kind = random.choice(["flip", "cut", "insert", "remove", "blank"])
        if kind == "flip":
            damaged[at] ^= 1 << random.randrange(8)
        elif kind == "insert":
            damaged[at:at] = random.randbytes(3)
        else:
            damaged[at : at + {"cut": len(intact)}.get(kind, 9)] = bytes(9 * (kind == "blank"))
        path.write_bytes(damaged)
        other = trainer(tmp_path)
        try:
            other.state.load(path)
        except RunError as error:
            refused += 1
            assert str(error).startswith(f"cannot read {path} (") and "\n" not in str(error)
        else:
            other.state.save(path)
            assert same(torch.load(path), expected)
    assert refused > 150


@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint", {}, {"parts": {}}, [1], torch.zeros(3), MLP(width=2), None],
    ids=[
        "empty",
        "text",
        "an empty dict",
        "a short dict",
        "a list",
        "a tensor",
        "code",
        "a folder",
    ],
)
def test_what_is_no_checkpoint_is_refused_by_name_and_left_alone(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(RunError, match=f"^cannot read {path} .*: put back") as caught:
        trainer(tmp_path).run(2, resume=True)
    assert "\n" not in str(caught.value)
    assert {entry.name for entry in tmp_path.iterdir()} == {".lock", "checkpoint.pt"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("optimizer", {"state": 1}), ("network", [1]), ("scheduler", 3), ("generator", torch.ones(2))],
)
def test_a_checkpoint_with_a_wrong_part_names_it_and_the_file(tmp_path, name, value):
    path = tmp_path / "checkpoint.pt"
    trainer(tmp_path).run(1)
    saved = torch.load(path)
    (saved if name in saved else saved["parts"])[name] = value
    torch.save(saved, path)
    with pytest.raises(ArgumentError, match=f"^{name}: got .* for {path}, needs the {name}"):
        trainer(tmp_path).run(2, resume=True)


@contextlib.contextmanager
def room_for(size: int):
    """Every file that is written ends at so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_run_by_name_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    # TensorBoard writes in a thread of its own, which speaks for itself.
    monkeypatch.setattr("keodrift.training.log._event_writer", lambda folder, step: None)
    path, log = tmp_path / "checkpoint.pt", tmp_path / "metrics.jsonl"
    trainer(tmp_path).run(1)
    kept, rows = path.read_bytes(), log.read_bytes()
    for size, refused in ((len(kept) - 1, path), (len(rows) + 9, log)):
        with (
            room_for(size),
            pytest.raises(RunError, match=f"^cannot write {refused} .File too large.: free"),
        ):
            trainer(tmp_path).run(2, resume=True)
        assert path.read_bytes() == kept
        assert not list(tmp_path.glob(".draft*"))
    straight, resumed = trainer(), trainer(tmp_path)
    straight.run(3)
    resumed.run(3, resume=True)
    assert_same(straight, resumed)


@pytest.mark.parametrize("refusing", ["tempfile.mkstemp", "os.replace"])
def test_a_folder_that_is_read_only_ends_the_run_by_name(tmp_path, monkeypatch, refusing):
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(refusing, refuse)
    log = tmp_path / "run" / "metrics.jsonl"
    with pytest.raises(RunError, match=f"^cannot write {log} .Permission denied.: free"):
        trainer(tmp_path / "run").run(1)
    assert [path.name for path in log.parent.iterdir()] == [".lock"]


def test_a_folder_below_a_file_ends_the_run_by_name(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OptionError, match=f"^folder: got {tmp_path}/file, needs a folder to write"):
        trainer(tmp_path / "file").run(1)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_fresh_run_does_not_overwrite_the_checkpoint_of_another(tmp_path):
    first = trainer(tmp_path)
    first.run(2)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(OptionError, match="^folder: got .*checkpoint.*resume=True, or another"):
        trainer(tmp_path).run(3)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert first.run(3)[-1]["step"] == 3  # its own is no other's


def resumed_with(source, tmp_path):
    """The batch source of a run that was resumed half-way, which is as one that was not."""

    def run(folder):
        made = trainer(folder)
        made.state.batches = source()
        return made

    straight, resumed = run(tmp_path / "a"), run(tmp_path / "b")
    straight.run(10)
    run(tmp_path / "b").run(5)
    resumed.run(10, resume=True)
    assert_same(straight, resumed)
    return resumed.state.batches


def test_a_batch_source_with_a_state_resumes_where_it_was(tmp_path):
    class Cycling:
        """Goes through three data sets in turn."""

        turn = 0

        def __call__(self, generator):
            self.turn += 1
            noise = torch.randn(8, 2, generator=generator)
            return Batch((noise,), torch.randn(8, 2, generator=generator) + self.turn % 3)

        def state_dict(self):
            return {"turn": self.turn}

        def load_state_dict(self, state):
            self.turn = state["turn"]

    assert resumed_with(Cycling, tmp_path).turn == 10


@pytest.mark.parametrize("wrong", [kd.OneSidedDrift(1.0), [kd.OneSidedDrift(1.0)], None])
def test_a_drift_is_no_objective(wrong):
    network = MLP(width=4)
    optimizer = torch.optim.Adam(network.parameters())
    with pytest.raises(OptionError, match=r"^objective: got .*Objective\(drift\)"):
        Trainer(network, lambda generator: None, wrong, optimizer, seeded())


@pytest.mark.parametrize("wrong", [[], None, [kd.OneSidedDrift(1.0), "sinkhorn"]])
def test_an_objective_needs_drifts(wrong):
    with pytest.raises(OptionError, match="^drifts: got"):
        Objective(wrong)
    with pytest.raises(OptionError, match="^normalize: got 1"):
        Objective(kd.OneSidedDrift(1.0), normalize=1)


def test_the_drift_never_sees_samples_that_are_not_finite():
    def drift(x, y):
        raise AssertionError

    objective, batch = Objective(drift), Batch((), torch.zeros(3, 2))
    for value, words in ((torch.inf, "2 NaN or infinite"), (1e30, "up to 1.0e.30")):
        x = torch.zeros(3, 2).index_fill(0, torch.tensor(1), value)
        with pytest.raises(DivergedError, match=f"^training diverged: samples hold .*{words}"):
            objective(x, batch)


def test_an_evaluation_that_is_wrong_is_no_divergence():
    def evaluate(network):
        return {"w2_squared": wasserstein_squared(torch.full((2, 2), torch.nan), SHIFT[None])}

    with pytest.raises(NonFiniteError, match="^x: got"):
        trainer(evaluate=evaluate, evaluate_every=1).run(1)


def test_looking_does_not_change_the_run():
    looks = []

    def evaluate(model):
        looks.append(model.training)
        return {"spread": float(sample(model, 50, seeded(9)).std())}

    watched, alone = trainer(evaluate=evaluate, evaluate_every=3), trainer()
    watched.run(9)
    alone.run(9)
    assert looks == [False] * 3
    assert [row["step"] for row in watched.history if "spread" in row] == [3, 6, 9]
    assert [r["loss"] for r in watched.history] == [r["loss"] for r in alone.history]


def test_the_global_random_state_and_grad_mode_stay():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    trainer().run(2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_average_follows_the_stated_decay_which_grows_from_the_start():
    run = trainer(ema=0.3)
    values = []
    for step in range(1, 6):
        run.run(step)
        values.append(run.state.network.layers[0].weight.detach().clone())
    expected = values[0]
    for decay, value in zip((2 / 11, 3 / 12, 0.3, 0.3), values[1:], strict=True):
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(run.average.layers[0].weight, expected)


def test_the_average_of_a_short_run_is_not_one_of_its_beginning():
    run = trainer(ema=0.9999)
    run.run(1)
    start = run.state.network.layers[0].weight.detach().clone()
    run.run(60)
    end = run.state.network.layers[0].weight
    assert (run.average.layers[0].weight - end).norm() < 0.5 * (start - end).norm()


def test_the_log_says_how_steps_and_solves_went():
    drifts = [kd.SinkhornDrift(0.2), kd.SinkhornDrift(0.2, half_steps=5), kd.OneSidedDrift(0.2)]
    run = trainer(objective=Objective(drifts), clip=1e-3, ema=0.5)
    first, second = run.run(2)
    state = run.state
    weights, averaged = (
        torch.cat([w.flatten() for w in network.parameters()]).detach()
        for network in (state.network, run.average)
    )
    assert first["average_distance"] == 0
    distance = (averaged - weights).norm() / weights.norm()
    assert second["average_distance"] == pytest.approx(float(distance))
    # Of the second step, whose batch and network's outputs can be made again.
    again = trainer(objective=Objective(drifts), clip=1e-3, ema=0.5)
    again.run(1)
    batch = again.state.batches(again.state.generator)
    x = again.state.network(*batch.inputs)
    again.state.network.zero_grad()
    again.objective(x, batch).backward()
    gradient = torch.cat([w.grad.flatten() for w in again.state.network.parameters()])
    assert second["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert float(gradient.norm()) > 1e-3  # before it was clipped
    fields = [drift.fit(x, batch.data) for drift in drifts[:2]]
    assert second["half_steps"] == max(field.half_steps for field in fields)
    assert second["marginal_error"] == pytest.approx(float(fields[0].marginal_error), rel=1e-3)


@pytest.mark.parametrize(
    ("drift", "known"),
    [
        (kd.SinkhornDrift(0.2), {"half_steps", "marginal_error"}),
        (kd.SinkhornDrift(0.2, half_steps=5), {"half_steps"}),
        (kd.OneSidedDrift(0.2), set()),
        (lambda x, y: y - x, set()),
    ],
)
def test_an_objective_reports_what_was_solved_without_solving_again(drift, known, monkeypatch):
    objective, batch = Objective(drift), Batch((), torch.randn(20, 2, generator=seeded()))
    x = torch.randn(20, 2, generator=seeded(1))
    assert objective.report() == {}
    loss = objective(x, batch)
    assert torch.equal(loss, kd.drift_loss(x, batch.data, drift))
    monkeypatch.setattr(kd.Drift, "fit", None)
    assert objective.report().keys() == known
    assert objective == Objective(drift) and hash(objective) == hash(Objective(drift))


def test_a_network_learns_a_shift():
    network = MLP(width=32, hidden=1)

    def batches(generator):
        noise = torch.randn(64, 2, generator=generator)
        return Batch((noise,), torch.randn(64, 2, generator=generator) * 0.5 + SHIFT)

    run = Trainer(
        network,
        batches,
        Objective(kd.SinkhornDrift(0.5)),
        torch.optim.Adam(network.parameters(), lr=1e-2),
        seeded(),
        ema=0.9,
    )
    history = run.run(150)
    points = sample(run.average, 500, seeded(1))
    assert (points.mean(0) - SHIFT).abs().max() < 0.15
    assert (points.std(0) - 0.5).abs().max() < 0.15
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]


def test_several_temperatures_and_loss_options_reach_the_loss():
    drifts = [kd.OneSidedDrift(tau) for tau in (0.1, 1.0)]
    run = trainer(objective=Objective(drifts, normalize=True, scale_features=True))
    history = run.run(1)
    batch_loss = history[0]["loss"]
    batch = target_batches(run.state.network, get_target("eight_gaussians"), 32)(seeded(3))
    with torch.no_grad():
        x = MLP(width=16)(*batch.inputs)
        loss = kd.drift_loss(x, batch.data, drifts, normalize=True, scale_features=True)
    assert batch_loss == pytest.approx(float(loss))


def test_clip_bounds_the_gradient():
    free, clipped = trainer(), trainer(clip=1e-3)
    for run in (free, clipped):
        run.run(1)
    norms = [
        torch.cat([w.grad.flatten() for w in run.state.network.parameters()]).norm()
        for run in (free, clipped)
    ]
    assert norms[0] > 1e-3
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_is_for_the_products_of_the_network_alone():
    seen = []

    class Watching(MLP):
        def forward(self, noise):
            out = super().forward(noise)
            seen.append(out.dtype)
            return out

    def drift(x, y):
        seen.append(x.dtype)
        return y - x

    full, mixed = (trainer(precision=precision, drift=drift) for precision in ("full", "bfloat16"))
    mixed.state.network.__class__ = Watching
    first, second = full.run(5), mixed.run(5)
    assert seen[-2:] == [torch.bfloat16, torch.float32]
    assert all(weight.dtype == torch.float32 for weight in mixed.state.network.parameters())
    assert not torch.is_autocast_enabled("cpu")
    losses = [[row["loss"] for row in rows] for rows in (first, second)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_bfloat16_resumes_bit_for_bit(tmp_path):
    straight = trainer(tmp_path / "a", precision="bfloat16")
    straight.run(20)
    trainer(tmp_path / "b", precision="bfloat16").run(10)
    resumed = trainer(tmp_path / "b", precision="bfloat16")
    resumed.run(20, resume=True)
    assert_same(straight, resumed)


def test_latent_batches_are_one_problem_a_class():
    latents = load_digits_latents(6)
    network = ConditionalMLP(dim=6)
    batch = latent_batches(network, latents, 4)(seeded())
    assert torch.equal(batch.inputs[1], batch.options["x_labels"])
    assert torch.equal(batch.options["x_labels"], batch.options["y_labels"])
    run = Trainer(
        network,
        latent_batches(network, latents, 4),
        Objective(kd.SinkhornDrift(1.0)),
        torch.optim.Adam(network.parameters()),
        seeded(),
    )
    assert run.run(2)[-1]["step"] == 2


def test_a_diverging_loss_stops_the_run():
    run = trainer(drift=lambda x, y: torch.full_like(x, torch.inf))
    with pytest.raises(DivergedError, match="step 1"):
        run.run(3)


def test_a_diverged_network_is_never_kept(tmp_path):
    pulls = iter([0.0, 0.0, 0.0, torch.inf])

    def late_explosion(x, y):
        return torch.full_like(x, next(pulls))

    run = trainer(drift=late_explosion, folder=tmp_path, checkpoint_every=2, log_every=3)
    with pytest.raises(DivergedError, match="step 4"):
        run.run(9)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 2
    assert all(bool(torch.isfinite(weight).all()) for weight in kept["parts"]["network"].values())


@pytest.mark.parametrize("looks", [True, False])
def test_samples_that_overflow_end_the_run(looks):
    """The weights of the first step are finite, the samples made from them are not."""
    real = torch.zeros(9, 2)
    run = trainer(
        evaluate=lambda network: {
            "w2_squared": wasserstein_squared(sample(network, 9, seeded()), real)
        },
        evaluate_every=1 if looks else 9,
        ema=0.0,
    )
    run.state.optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(DivergedError, match="at step 1 samples hold .* infinite coordinates"):
        run.run(3)


def test_data_that_are_not_finite_are_a_wrong_argument():
    run = trainer()
    run.state.batches = lambda generator: Batch((torch.zeros(4, 2),), torch.full((4, 2), torch.nan))
    with pytest.raises(NonFiniteError, match="^y: got"):
        run.run(1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("ema", 1.0),
        ("ema", "0.9"),
        ("clip", 0.0),
        ("clip", -1.0),
        ("log_every", 1.5),
        ("precision", "half"),
        ("log_every", 0),
        ("evaluate_every", 0),
        ("checkpoint_every", 0),
    ],
)
def test_refusals_name_the_argument(argument, value):
    with pytest.raises(ArgumentError, match=f"^{argument}: got"):
        trainer(**{argument: value})


def test_zero_steps_are_refused():
    with pytest.raises(ArgumentError, match="^steps: got 0"):
        trainer().run(0)


class TestFiles:
    def test_a_failing_writer_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "a.json"
        write_json(path, {"old": 1})

        def interrupted() -> None:
            with atomic_path(path) as draft:
                draft.write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert json.loads(path.read_text()) == {"old": 1}
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]

    def test_permissions_are_those_of_a_plain_file(self, tmp_path):
        (tmp_path / "plain").touch()
        write_json(tmp_path / "atomic", 1)
        modes = {(tmp_path / name).stat().st_mode for name in ("plain", "atomic")}
        assert len(modes) == 1


def test_tensorboard_gets_the_numbers_where_it_is_installed(tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard, which reads its own files, is not installed (extra: test)",
    )

    def evaluate(model: object) -> dict[str, float]:
        if cut_off.step == 5:
            raise KeyboardInterrupt
        return {"w2_squared": 7.0}

    cut_off = trainer(tmp_path, evaluate=evaluate, evaluate_every=1)
    cut_off.run(3)
    time.sleep(1)  # its files are read in the order of their names, which begin with the second
    with pytest.raises(KeyboardInterrupt):
        cut_off.run(6)  # after it wrote the numbers of step 4, and no checkpoint
    time.sleep(1)
    resumed = trainer(tmp_path)
    resumed.run(6, resume=True)
    seen = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(row["step"], pytest.approx(row["loss"])) for row in resumed.history]
    assert [(event.step, event.value) for event in seen.Scalars("loss")] == losses
    assert [(event.step, event.value) for event in seen.Scalars("w2_squared")] == [
        (step, 7.0) for step in (1, 2, 3)
    ]


class Dropped(MLP):
    def forward(self, noise):
        return self.layers(torch.nn.functional.dropout(noise, 0.5, self.training))


def test_layers_that_draw_resume_bit_for_bit_whatever_was_drawn_before(tmp_path):
    """Dropout takes no generator: it draws from torch's own state."""

    def train(folder, *goals):
        for steps in goals:
            network = Dropped(width=16)
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
            batches = target_batches(network, get_target("eight_gaussians"), 32)
            objective = Objective(kd.OneSidedDrift(0.5))
            given = (network, batches, objective, optimizer, seeded(3))
            found = Trainer(*given, folder=folder, log_every=1)
            torch.rand(steps)  # something else draws as well
            before = torch.get_rng_state()
            found.run(steps, resume=True)
            assert torch.equal(torch.get_rng_state(), before)
        return found

    assert_same(train(tmp_path / "a", 6), train(tmp_path / "b", 4, 6))


def test_a_state_that_no_checkpoint_gives_back_is_refused_before_the_first_step(tmp_path):
    network = MLP(width=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=np.float64(1e-3))
    batches = target_batches(network, get_target("eight_gaussians"), 8)
    objective = Objective(kd.OneSidedDrift(0.5))
    made = Trainer(network, batches, objective, optimizer, seeded(), folder=tmp_path / "run")
    with pytest.raises(ArgumentError, match=r"^optimizer: got a state with numpy.float64 at \["):
        made.run(2)
    assert not (tmp_path / "run").exists()


class Telling(Objective):
    def report(self):
        return {"numpy": np.float32(0.5), "tensor": torch.tensor(2.0)}


def test_what_an_objective_reports_is_logged_and_kept_as_numbers(tmp_path):
    objective = Telling(kd.OneSidedDrift(0.5))
    trainer(tmp_path, objective=objective).run(2)
    resumed = trainer(tmp_path, objective=Telling(kd.OneSidedDrift(0.5)))
    assert resumed.run(3, resume=True)[0]["tensor"] == 2.0
    assert len(resumed.history) == 3


def test_a_mistake_of_evaluate_does_not_lose_the_training(tmp_path):
    def wrong(network):
        raise KeyError("score")

    with pytest.raises(KeyError, match="score"):
        trainer(tmp_path, evaluate=wrong, evaluate_every=5).run(5)
    assert (tmp_path / "checkpoint.pt").exists()
    resumed = trainer(tmp_path)
    assert resumed.run(5, resume=True)[-1]["step"] == 5
    assert [row["step"] for row in resumed.run(6)] == [1, 2, 3, 4, 5, 6]


def test_a_network_in_half_precision_is_refused():
    network = MLP(width=8).bfloat16()
    batches = target_batches(network, get_target("eight_gaussians"), 8)
    optimizer = torch.optim.Adam(network.parameters())
    with pytest.raises(DtypeError, match=r"^network: got weights in torch.bfloat16, .*precision="):
        Trainer(network, batches, Objective(kd.OneSidedDrift(0.5)), optimizer, seeded())


def test_samples_that_are_images_are_told_to_be_flattened():
    x = torch.zeros(4, 3, 2, 2, requires_grad=True)
    with pytest.raises(ShapeError, match=r"^x: got samples of shape \(4, 3, 2, 2\), .*flatten"):
        Objective(kd.OneSidedDrift(0.5))(x, Batch((), torch.ones(4, 3, 2, 2)))


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    trainer(tmp_path, checkpoint_every=1).run(2)
    damaged = b"half"
    (tmp_path / "checkpoint.pt").write_bytes(damaged)
    other = FileLock(tmp_path / ".lock")
    with other, pytest.raises(OptionError, match=r"^folder: got .*another process is training"):
        trainer(tmp_path).run(3, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == damaged
    with pytest.warns(UserWarning, match="damaged"):
        trainer(tmp_path).run(3, resume=True)


def refused(optimizer=None, scheduler=None):
    network = MLP(width=4)
    optimizer = optimizer or torch.optim.SGD
    made = optimizer(network.parameters())
    return Trainer(network, lambda g: None, Objective(kd.OneSidedDrift(1.0)), made, seeded(),
        scheduler=scheduler and scheduler(made))  # fmt: skip


ELSEWHERE = torch.optim.Adam(MLP(width=4).parameters())


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("optimizer", {"optimizer": lambda weights: ELSEWHERE}),
        ("optimizer", {"optimizer": torch.optim.LBFGS}),
        ("scheduler", {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}),
        ("scheduler", {"scheduler": lambda _: torch.optim.lr_scheduler.ConstantLR(ELSEWHERE)}),
    ],
)
def test_what_would_train_nothing_is_refused(argument, options):
    refused(optimizer=torch.optim.SGD)
    with pytest.raises(OptionError, match=f"^{argument}: got"):
        refused(**options)


@pytest.mark.parametrize(
    "ending",
    [
        lambda adam: torch.optim.lr_scheduler.OneCycleLR(adam, 1e-3, 5),
        lambda adam: LateFall(adam, 5),
    ],
)
def test_a_scheduler_that_ends_before_the_run_is_refused(ending):
    run = trainer()
    run.state.scheduler = ending(run.state.optimizer)
    with pytest.raises(OptionError, match="^steps: got 6, needs 5 at most"):
        run.run(6)
    run.run(5)


def test_a_late_fall_is_level_and_then_straight():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    fall, rates = LateFall(optimizer, 10, 0.4), []
    for _ in range(10):
        rates += fall.get_last_lr()
        optimizer.step()
        fall.step()
    assert rates == pytest.approx([0.5] * 7 + [0.375, 0.25, 0.125])
    assert fall.get_last_lr() == [0.0]


@pytest.mark.parametrize(("argument", "options"), [("steps", (0,)), ("share", (10, 1.5))])
def test_a_late_fall_refuses_what_is_no_training(argument, options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    with pytest.raises(OptionError, match=f"^{argument}: got"):
        LateFall(optimizer, *options)


def test_a_late_fall_resumes_bit_for_bit(tmp_path):
    runs = []
    for folder, parts in (("a", [20]), ("b", [15, 20])):
        for steps in parts:
            run = trainer(tmp_path / folder)
            run.state.scheduler = LateFall(run.state.optimizer, 20)
            run.run(steps, resume=True)
        runs.append(run)
    assert_same(*runs)


def test_a_source_without_a_state_at_first_resumes_with_that_it_had(tmp_path):
    class Seen(dict):
        def __call__(self, generator):
            self["turn"] = self.get("turn", 0) + 1
            noise = torch.randn(8, 2, generator=generator)
            return Batch((noise,), torch.full((8, 2), float(self["turn"])))

        def state_dict(self):
            return dict(self)

        load_state_dict = dict.update

    assert resumed_with(Seen, tmp_path) == {"turn": 10}


class Counting(torch.nn.Module):
    """A drift of one's own that remembers how often it was called."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, y):
        self.calls += 1
        return self.calls * (y.mean(0) - x)


def test_a_drift_with_a_state_of_its_own_resumes_where_it_was(tmp_path):
    straight = trainer(tmp_path / "a", Counting())
    straight.run(6)
    trainer(tmp_path / "b", Counting()).run(3)
    resumed = trainer(tmp_path / "b", Counting())
    resumed.run(6, resume=True)
    assert_same(straight, resumed)
    with pytest.raises(ArgumentError, match="^objective"):
        trainer(tmp_path / "b").run(7, resume=True)  # whose drift remembers nothing


def test_layers_that_are_frozen_in_a_network_stay_asleep():
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8).eval(), torch.nn.Linear(8, 2)
    )
    network[1].requires_grad_(False)
    network.training = True

    def batches(generator):
        return Batch((torch.randn(16, 2, generator=generator),), torch.ones(16, 2))

    adam = torch.optim.Adam(network.parameters())
    Trainer(network, batches, Objective(kd.OneSidedDrift(1.0)), adam, seeded()).run(3)
    assert not network[1].training and not bool(network[1].running_mean.any())


def test_numbers_of_an_evaluation_do_not_take_the_place_of_others():
    def evaluate(network):
        return {"step": 7, "loss": -1, "mine": 3}

    run = trainer(evaluate=evaluate, evaluate_every=1)
    assert [row["step"] for row in run.run(2)] == [1, 2]
    assert all(row["loss"] >= 0 and row["mine"] == 3 for row in run.history)


def test_a_run_trains_where_gradients_are_off():
    run, other = trainer(), trainer()
    with torch.no_grad():
        run.run(2)
    other.run(2)
    assert_same(run, other)


def test_another_objective_between_runs_is_the_one_that_is_kept(tmp_path):
    run = trainer(tmp_path)
    run.run(1)
    run.objective = Objective(kd.SlicedWassersteinDrift(4, generator=seeded(5)))
    run.run(2)
    assert "generators" in torch.load(tmp_path / "checkpoint.pt")["parts"]["objective"]


def test_drafts_of_a_process_that_was_killed_are_cleared_away(tmp_path):
    (tmp_path / ".draft-abc.pt").write_bytes(b"half")
    trainer(tmp_path).run(1)
    assert not list(tmp_path.glob(".draft-*"))
