"""The command line: a run folder out of a config, one sentence out of a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import keodrift as kd
from keodrift.cli import main
from keodrift.data import TARGETS
from keodrift.errors import OptionError
from keodrift.runs import build, compose, config_dir

SMALL = [
    "batch=32",
    "network.width=16",
    "network.blocks=1",
    "evaluate_samples=50",
    "evaluate_every=2",
    "progress=false",
]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def test_train_writes_one_run_folder_and_resumes_it(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *SMALL, "steps=4", f"output={run}"]) == 0
    assert f"see {run}" in capsys.readouterr().out
    files = {path.name for path in run.iterdir()} - {"tensorboard", ".lock"}
    assert sorted(files) == [
        "checkpoint.pt", "config.yaml", "curves.png", "metrics.jsonl", "result.json", "samples.npz",
        "samples.png",
    ]  # fmt: skip
    assert json.loads((run / "result.json").read_text())["steps"] == 4
    assert main(["train", *SMALL, "steps=6", f"output={run}", "resume=true"]) == 0
    assert json.loads((run / "result.json").read_text())["steps"] == 6


@pytest.mark.parametrize("drift", choices("drift"))
def test_every_drift_trains(tmp_path, drift):
    assert main(["train", *SMALL, f"drift={drift}", "steps=1", f"output={tmp_path}/r"]) == 0


def test_there_is_a_config_for_every_target():
    assert choices("data") == sorted(TARGETS)
    assert all(compose("train", [f"data={name}"]).data.name == name for name in TARGETS)


@pytest.mark.parametrize("network", choices("network"))
@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_every_network_and_optimizer_can_be_built(network, optimizer):
    config = compose("train", [f"network={network}", f"optimizer={optimizer}"])
    network = build(config.network)
    assert build(config.optimizer, network.parameters()).param_groups


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("drift=magnetic", "magnetic"),
        ("drift.tau=-1", "tau: got -1"),
        ("drift.cost=manhattan", "manhattan"),
        ("drift.taw=1", "taw"),
        ("data.name=donut", "donut"),
        ("steps=0", "steps: got 0"),
        ("ema=2", "ema: got 2"),
        ("device=abacus", "abacus"),
        ("resume=true", "holds no run"),
        ("this is no override", "override"),
    ],
)
def test_a_wrong_config_ends_in_one_sentence(tmp_path, capsys, override, words):
    code = main(["train", *SMALL, "steps=1", f"output={tmp_path}/none", override])
    error = capsys.readouterr().err
    assert code == 2
    assert words in error
    assert error.startswith("keodrift: ") and error.count("\n") == 1
    assert "Traceback" not in error
    assert not (tmp_path / "none" / "checkpoint.pt").exists()


def test_a_diverging_run_ends_in_one_sentence(tmp_path, capsys):
    words = ["optimizer.lr=1e30", "network=mlp", "steps=9", f"output={tmp_path}/r"]
    small = [word for word in SMALL if "blocks" not in word]
    assert main(["train", *small, *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("keodrift: training diverged") and said.count("\n") == 1


def test_a_run_is_neither_overwritten_nor_resumed_with_another_config(tmp_path, capsys):
    command = ["train", *SMALL, "steps=1", f"output={tmp_path}/r"]
    assert main(command) == 0
    assert main(command) == 2
    assert "resume=True" in capsys.readouterr().err
    assert main([*command, "resume=true", "drift.tau=0.7"]) == 2
    assert "drift" in capsys.readouterr().err


def test_a_run_older_than_a_key_of_the_config_resumes_with_its_default(tmp_path, capsys):
    command = ["train", *SMALL, f"output={tmp_path}"]
    assert main(command) == 0
    saved = tmp_path / "config.yaml"
    kept = [line for line in saved.read_text().splitlines() if not line.startswith("precision")]
    assert len(kept) == len(saved.read_text().splitlines()) - 1
    saved.write_text("\n".join(kept) + "\n")
    assert main([*command, "resume=true", "precision=bfloat16"]) == 2
    assert "changed in precision" in capsys.readouterr().err
    assert main([*command, "resume=true", "steps=6"]) == 0


def test_two_processes_do_not_train_in_one_folder(tmp_path, capsys):
    from filelock import FileLock

    command = ["train", *SMALL, "steps=1", f"output={tmp_path}/r"]
    (tmp_path / "r").mkdir()
    with FileLock(tmp_path / "r" / ".lock"):
        assert main(command) == 2
    assert "another process" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "r").iterdir()] == [".lock"]
    assert main(command) == 0


def test_an_unknown_command_ends_in_one_sentence(capsys):
    assert main(["dance"]) == 2
    assert "dance" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"]])
def test_help_shows_groups_and_keys(capsys, arguments):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "drift: sinkhorn" in shown and "usage" in shown


def test_module_entry_point():
    done = subprocess.run(
        [sys.executable, "-m", "keodrift", "train", "drift=magnetic"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "magnetic" in done.stderr and "Traceback" not in done.stderr


def test_build_refuses_what_does_not_fit():
    from omegaconf import OmegaConf

    node = OmegaConf.create({"_target_": "keodrift.OneSidedDrift", "tau": 0.5})
    assert build(node) == kd.OneSidedDrift(0.5)
    with pytest.raises(OptionError, match="colour"):
        build(OmegaConf.merge(node, {"colour": "red"}))


def test_multirun_trains_every_combination_once(tmp_path, capsys):
    command = ["train", "-m", *SMALL, "steps=2", f"output={tmp_path}/sweep"]
    assert main([*command, "seed=0,1", "drift=one_sided,sinkhorn"]) == 0
    said = capsys.readouterr()
    runs = sorted(path.parent.name for path in tmp_path.glob("sweep/*/result.json"))
    assert runs == [f"seed={s},drift={d}" for s in (0, 1) for d in ("one_sided", "sinkhorn")]
    assert all(f"{run}: W2^2" in said.out for run in runs)
    assert "4 of 4" in said.err
    # Again, with one value more: only what is missing is trained, what was cut off goes on.
    (tmp_path / "sweep" / runs[0] / "result.json").unlink()
    kept = (tmp_path / "sweep" / runs[1] / "result.json").stat().st_mtime_ns
    assert main([*command, "seed=0,1,2", "drift=one_sided,sinkhorn"]) == 0
    assert (tmp_path / "sweep" / runs[1] / "result.json").stat().st_mtime_ns == kept
    assert capsys.readouterr().err.count(" of 6:") == 3
    # What is there must not pass for a run of another config.
    assert main([*command, "seed=0,1", "drift=one_sided,sinkhorn", "ema=0.5"]) == 2
    assert "changed in ema" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed=0"], "a list of values"),
        (["seed=0,1", "drift=sinkhorn,magnetic"], "magnetic"),
        (["seed=0,1", "]["], "config"),
    ],
)
def test_a_wrong_sweep_ends_in_one_sentence_before_any_run(tmp_path, capsys, overrides, words):
    code = main(["train", "-m", *SMALL, "steps=1", f"output={tmp_path}/sweep", *overrides])
    said = capsys.readouterr().err
    assert code == 2 and words in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "sweep").exists()
