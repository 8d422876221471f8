"""Long runs: killed at any moment, damaged, diverged, they lose nothing that was kept."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest
import torch

import keodrift as kd
from keodrift.data import get_target
from keodrift.errors import DivergedError, RunError
from keodrift.networks import MLP
from keodrift.tasks import target_batches
from keodrift.training import Objective, Trainer, checkpoints

RUN = """
import sys, torch, keodrift as kd
from keodrift.data import get_target
from keodrift.networks import MLP
from keodrift.tasks import target_batches
from keodrift.training import Objective, Trainer

network = MLP(width=16)
batches = target_batches(
    network, get_target("two_moons"), 32, balanced=True, negatives="fresh"
)
drift = kd.SinkhornDrift(0.2, half_steps=11)
trainer = Trainer(
    network, batches, Objective(drift, negatives="fresh"),
    torch.optim.Adam(network.parameters(), lr=1e-2), torch.Generator().manual_seed(3),
    folder=sys.argv[1], checkpoint_every=1, log_every=1,
)
trainer.run(int(sys.argv[2]), resume=True)
"""


def begun(folder, steps: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder), str(steps)])


def trainer(folder, drift=None, **options) -> Trainer:
    network = MLP(width=8)
    batches = target_batches(network, get_target("two_moons"), 16)
    optimizer = torch.optim.Adam(network.parameters())
    objective = Objective(drift or kd.OneSidedDrift(0.5))
    settings = {"checkpoint_every": 2, "log_every": 1} | options
    random_state = torch.Generator().manual_seed(0)
    return Trainer(network, batches, objective, optimizer, random_state, folder=folder, **settings)


def test_a_run_killed_at_any_moment_ends_with_the_weights_of_one_that_was_not(tmp_path):
    steps, moments = 60, random.Random(0)
    assert begun(tmp_path / "whole", steps).wait(120) == 0
    cut, kills = tmp_path / "cut", 0
    while True:
        run, had = begun(cut, steps), len(checkpoints(cut))
        while run.poll() is None and len(checkpoints(cut)) <= had < 2:
            time.sleep(0.005)  # until it trains
        time.sleep(moments.uniform(0, 0.2) + 3 * (had == 2 and kills < 3))
        if kills == 3 or run.poll() is not None:
            assert run.wait(120) == 0
            break
        run.send_signal(signal.SIGKILL)
        run.wait()
        kills += 1
        assert checkpoints(cut)
    ends = [
        torch.load(folder / "checkpoint.pt", weights_only=True)
        for folder in (tmp_path / "whole", cut)
    ]
    for part in ("network", "ema"):
        first, second = (end["parts"][part] for end in ends)
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert kills and [row["loss"] for row in ends[0]["history"]] == [
        row["loss"] for row in ends[1]["history"]
    ]


def test_the_last_two_checkpoints_are_kept_and_the_older_one_stands_in(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.run(8)
    trainer(tmp_path / "run").run(6)
    newest, before = checkpoints(tmp_path / "run")
    steps = [torch.load(path, weights_only=True)["step"] for path in (newest, before)]
    assert steps == [6, 4]
    newest.write_bytes(newest.read_bytes()[:100])
    again = trainer(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged.*goes on from .*step 4"):
        again.run(8, resume=True)
    pairs = zip(again.average.parameters(), whole.average.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    for path in checkpoints(tmp_path / "run"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match="checkpoint"):
        trainer(tmp_path / "run").run(9, resume=True)


def test_a_run_whose_newest_checkpoint_was_moved_only_goes_on_from_the_one_before(tmp_path):
    trainer(tmp_path).run(4)
    (tmp_path / "checkpoint.pt").unlink()  # as a kill between two renames leaves it
    again = trainer(tmp_path)
    again.run(4, resume=True)
    assert again.step == 4 and len(checkpoints(tmp_path)) == 2


def test_what_a_training_diverged_on_is_kept(tmp_path):
    pulls = iter([0.0, 0.0, 0.0, torch.inf])

    def explosion(x, y):
        return torch.full_like(x, next(pulls))

    run = trainer(tmp_path, drift=explosion, log_every=100)
    with pytest.raises(DivergedError, match=r"step 4.*diverged\.pt"):
        run.run(9)
    kept = torch.load(tmp_path / "diverged.pt", weights_only=True)
    assert kept["step"] == 4 and "explosion" in kept["objective"]
    assert kept["batch"]["data"].shape == (16, 2)
    # The step was not taken: the weights are those that made the batch's samples.
    assert all(bool(torch.isfinite(weight).all()) for weight in kept["network"].values())
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_an_interrupted_run_keeps_the_step_it_was_in(tmp_path):
    # A shell's background jobs ignore interrupts, and what they start does too: not this run.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script = heard + RUN.replace("checkpoint_every=1,", "checkpoint_every=100_000,")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), "100000"], stderr=subprocess.DEVNULL
    )
    log = tmp_path / "metrics.jsonl"
    try:
        while not (log.exists() and log.read_text().count("\n") > 3):
            assert process.poll() is None
            time.sleep(0.05)
        assert not checkpoints(tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    finally:
        process.kill()
    steps = log.read_text().count("\n")
    saved = torch.load(checkpoints(tmp_path)[0])
    assert saved["step"] == steps == len(saved["history"])
