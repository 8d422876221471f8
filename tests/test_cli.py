"""The command line: a run folder out of a config, one sentence out of a wrong one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.version import VersionBase

import keodrift as kd
from keodrift import runs
from keodrift.cli import main
from keodrift.configuration import compose, config_dir, quoted
from keodrift.data import TARGETS, get_target
from keodrift.errors import ArgumentError, OptionError
from keodrift.runs import build
from keodrift.tasks import PlanarTask
from keodrift.training.loop import EMA_DECAY

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
        "checkpoint.pt", "config.yaml", "curves.png", "metrics.jsonl", "network.safetensors",
        "result.json", "samples.npz", "samples.png",
    ]  # fmt: skip
    assert json.loads((run / "result.json").read_text())["steps"] == 4
    assert main(["train", *SMALL, "steps=6", f"output={run}", "resume=true"]) == 0
    assert json.loads((run / "result.json").read_text())["steps"] == 6


@pytest.mark.parametrize("drift", choices("drift"))
def test_every_drift_trains(tmp_path, drift):
    assert main(["train", *SMALL, f"drift={drift}", "steps=1", f"output={tmp_path}/r"]) == 0


def test_there_is_a_config_for_every_target():
    assert set(choices("data")) > set(TARGETS)
    assert all(compose("train", [f"data={name}"]).data.name == name for name in TARGETS)


@pytest.mark.parametrize("network", choices("network"))
@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_every_network_and_optimizer_can_be_built(network, optimizer):
    config = compose("train", [f"network={network}", f"optimizer={optimizer}"])
    network = runs._network(config.network, PlanarTask(get_target("two_modes")), 0)
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
        ("device=meta", "meta"),
        ("steps=abc", "abc"),
        ("steps=1.5", "1.5"),
        ("ema=abc", "abc"),
        ("batch=-3", "batch: got -3"),
        ("evaluate_samples=0", "evaluate_samples: got 0"),
        ("checkpoint_every=0", "checkpoint_every: got 0"),
        ("clip=-1", "clip: got -1"),
        ("+foo=1", "foo"),
        ("network.width=0", "width: got 0"),
        ("objective.normalize=7", "normalize: got 7"),
        ("negatives=others", "negatives: got 'others'"),
        ("negatives=masked", "presumes independent points"),
        ("objective.negatives=self", "negatives: got 'self' for a batch with model_inputs"),
        ("network.classes=8", "classes"),
        ("output=", "output: got ''"),
        ("resume=true", "holds no run"),
        ("this is no override", "override"),
        ("~steps", "steps: got nothing"),
        ("~drift", "drift: got nothing"),
        ("drift=null", "NoneType"),
        ("+drift.taw=1", "'taw'"),
        ("+network.widht=3", "'widht'"),
        ("+optimizer.rate=3", "'rate'"),
        ("+objective.normalise=true", "'normalise'"),
        ("+scheduler.foo=3", "got {'foo': 3}"),
        ("hydra.run.dir=here", "hydra.run.dir: got here"),
        ("ema=nan", "ema: got nan"),
    ],
)
def test_a_wrong_config_ends_in_one_sentence(tmp_path, monkeypatch, capsys, override, words):
    monkeypatch.chdir(tmp_path)
    code = main(["train", *SMALL, "steps=1", f"output={tmp_path}/none", override])
    error = capsys.readouterr().err
    assert code == 2
    assert words in error
    assert error.startswith("keodrift: ") and error.count("\n") == 1
    assert "Traceback" not in error
    assert not any(tmp_path.iterdir())


def test_a_typo_is_not_answered_with_advice_that_is_refused(tmp_path, capsys):
    assert main(["train", f"output={tmp_path}/none", "stepz=3"]) == 2
    assert "+stepz" not in capsys.readouterr().err
    assert main(["train", f"output={tmp_path}/none", "drift=several", "+drift.foo=3"]) == 2
    assert "_target_" in capsys.readouterr().err
    assert main(["reproduce", "fig2", "--quik", f"output={tmp_path}/none"]) == 2
    assert "--quik: got an unknown flag" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_as_many_samples_judge_as_the_config_says(tmp_path, monkeypatch):
    def count(x, y, *, cap):
        return min(len(x), len(y), cap)

    monkeypatch.setattr("keodrift.tasks.planar.wasserstein_squared", count)
    config = compose("train", ["evaluate_samples=3000", f"output={tmp_path}/none"])
    task, trainer = runs.prepare(config)
    assert task.evaluate(trainer.average) == {"w2_squared": 3000}


@pytest.mark.parametrize("where", ["file", "file/run"])
def test_an_output_that_is_no_folder_ends_in_one_sentence(tmp_path, capsys, where):
    (tmp_path / "file").write_text("mine")
    assert main(["train", *SMALL, "steps=1", f"output={tmp_path}/{where}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("keodrift: output: got") and error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "- a list", "", "bar: 1", "steps: many", b"\xff\xfe"])
def test_a_broken_config_in_a_folder_ends_in_one_sentence(tmp_path, capsys, text):
    saved = tmp_path / "config.yaml"
    saved.write_bytes(text if isinstance(text, bytes) else text.encode())
    code = main(["train", f"output={tmp_path}", "resume=true", "drift.tau=0.3"])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("name", ["checkpoint.pt", "result.json"])
def test_a_damaged_file_of_a_run_ends_in_one_sentence(tmp_path, capsys, name):
    words = [*SMALL, "steps=1", f"output={tmp_path}"]
    command = {"checkpoint.pt": ["train", *words, "resume=true"]}.get(
        name, ["train", "-m", *words, "seed=0,1"]
    )
    run = tmp_path if name == "checkpoint.pt" else tmp_path / "seed=0"
    assert main([*command[:-1], *({"seed=0,1"} & set(command))]) == 0
    (run / name).write_text("{")
    capsys.readouterr()
    assert main(command) == 1
    error = capsys.readouterr().err
    assert f"cannot read {run / name} (" in error and error.count("\n") == 1
    assert (run / name).read_text() == "{"


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
    assert "resume=true" in capsys.readouterr().err
    kept = (tmp_path / "r" / "result.json").read_bytes()
    for path in (tmp_path / "r").glob("checkpoint*"):
        path.unlink()
    assert main([*command, "seed=3"]) == 2  # its results are there still
    assert "result.json" in capsys.readouterr().err
    assert (tmp_path / "r" / "result.json").read_bytes() == kept
    assert main([*command, "resume=true", "drift.tau=0.7"]) == 2
    assert "changed in drift.tau (0.05, now 0.7)," in capsys.readouterr().err


def test_a_resume_takes_what_it_is_not_told_from_the_folder(tmp_path, capsys):
    words = ["drift=one_sided", "drift.tau=0.3", "experiment=paper_text", "network.width=16"]
    small = [word for word in SMALL if "blocks" not in word]
    command = ["train", f"output={tmp_path}", "resume=true"]
    assert main(["train", *small, *words, "batch=32", "steps=2", f"output={tmp_path}"]) == 0
    assert main(command) == 0
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 2
    assert main([*command, "steps=3", "drift.tau=0.3"]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 3
    capsys.readouterr()
    # What is told counts, be it the default of a run that begins.
    for told, change in (
        ("drift.tau=0.05", "drift.tau (0.3, now 0.05)"),
        ("seed=1", "network.seed (0, now 1), seed (0, now 1)"),
        ("drift=sinkhorn", "drift._target_ (keodrift.OneSidedDrift, now keodrift.SinkhornDrift)"),
        ("experiment=public_run", "network.blocks"),
    ):
        assert main([*command, told]) == 2
        assert change in capsys.readouterr().err


def test_a_run_older_than_a_key_of_the_config_resumes_with_its_default(tmp_path, capsys):
    command = ["train", *SMALL, f"output={tmp_path}"]
    assert main([*command, "steps=4"]) == 0
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


def test_python_and_configs_have_the_same_defaults():
    assert compose("train").ema == EMA_DECAY
    x, y = (torch.randn(9, 2, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    for name in choices("drift"):
        if name != "several":
            given = ["drift.reach=2.0"] if name == "relaxed" else []
            drift = build(compose("train", [f"drift={name}", *given]).drift)
            if not isinstance(drift, kd.SoftmaxDrift):
                continue  # neither a cost nor a temperature
            assert drift.cost == type(drift)(1.0).cost
            papers = replace(drift, cost="squared", tau=0.1, **({"reach": 4.0} if given else {}))
            torch.testing.assert_close(drift(x, y), papers(x, y))


def test_every_group_file_says_what_it_is_and_what_it_builds():
    for path in config_dir().glob("*/*.yaml"):
        first, *_ = path.read_text().removeprefix("# @package _global_\n").splitlines()
        assert first.startswith("# ") and first.endswith("."), path
        if path.parent.name != "experiment" and path.stem != "several":
            assert re.search("^(task:\n  )?_target_: ", path.read_text(), re.M), path


@pytest.mark.parametrize(
    "words",
    [
        ["drift=several", "drift.coarse.tau=2", "+drift@drift.third=one_sided"],
        ["objective.normalize=true", "objective.scale_features=true"],
        *(["scheduler=" + name] for name in choices("scheduler")),
    ],
)
def test_what_a_config_can_say_trains(tmp_path, words):
    assert main(["train", *SMALL, *words, "steps=2", f"output={tmp_path}/r"]) == 0
    assert main(["train", f"output={tmp_path}/r", "resume=true"]) == 0


def test_what_a_config_says_reaches_the_trainer(tmp_path):
    words = ["drift=several", "scheduler=cosine", "objective.scale_features=true", "clip=2"]
    _, trainer = runs.prepare(compose("train", [*SMALL, *words, f"output={tmp_path}/none"]))
    assert [drift.tau for drift in trainer.objective.drifts] == [0.05, 0.5]
    assert trainer.objective.scale_features and not trainer.objective.normalize
    assert trainer.state.scheduler.T_max == 5000 and trainer.clip == 2


def test_a_conditional_network_trains_on_modes_alone(tmp_path, capsys):
    words = ["network=conditional_mlp", "network.width=16", "steps=2"]
    small = [word for word in SMALL if not word.startswith("network.")]
    command = ["train", *small, *words]
    assert main([*command, "data=eight_gaussians", f"output={tmp_path}/r"]) == 0
    assert json.loads((tmp_path / "r" / "result.json").read_text())["modes"] == 8
    assert main([*command, "data=spiral", f"output={tmp_path}/s"]) == 2
    assert "one class a mode" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_schedule_made_for_some_steps_is_not_stretched(tmp_path, capsys):
    command = ["train", *SMALL, "scheduler=cosine", f"output={tmp_path}/r"]
    assert main([*command, "steps=2"]) == 0
    assert main([*command, "steps=4", "resume=true"]) == 2
    assert "scheduler.T_max (2, now 4)" in capsys.readouterr().err


def test_functions_of_the_working_folder_are_found(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_the_folder.py").write_text("def decode(z):\n    return z[:, None] / 0\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    before = list(sys.path)
    command = ["train", "task=latents", f"output={tmp_path}/r", "progress=false"]
    assert main([*command, "task.decoder=of_the_folder:decode"]) == 2
    assert "decoder: got a function to NaN or infinite" in capsys.readouterr().err
    assert sys.path == before


def test_a_folder_may_hold_any_sign(tmp_path):
    folder = tmp_path / "seed=1, naïve (x)"
    assert main(["train", *SMALL, "steps=1", f"output={folder}"]) == 0
    assert (folder / "result.json").is_file()


def test_what_lies_in_a_group_of_the_run_is_told_to_it_on_resume(tmp_path, capsys):
    command = ["train", *SMALL, "network=mlp", f"output={tmp_path}/r"]
    command = [word for word in command if word != "network.blocks=1"]
    assert main([*command, "network.hidden=1", "steps=1"]) == 0
    again = ["train", "progress=false", f"output={tmp_path}/r", "resume=true", "steps=2"]
    assert main([*again, "network.hidden=1", "network.width=16"]) == 0
    assert main([*again, "network.hidden=3"]) == 2
    assert "network.hidden (1, now 3)" in capsys.readouterr().err
    assert main([*again, "~optimizer.fused"]) == 2
    assert "optimizer.fused (True, now None)" in capsys.readouterr().err
    assert main([*again, "nothing.width=3"]) == 2
    assert capsys.readouterr().err.startswith("keodrift: nothing.width: got an unknown key")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("seed", ["seed=99999999999999999999"]),
        ("seed", ["seed=-1"]),
        ("scheduler", ["scheduler=cosine", "scheduler.T_max=0"]),
        ("optimizer", ["optimizer._target_=torch.optim.SparseAdam", "~optimizer.fused"]),
        ("bandwidth", ["drift=mmd", "drift.bandwidth=auto"]),
    ],
)
def test_what_no_step_could_be_made_with_is_told_before_it(tmp_path, capsys, argument, words):
    assert main(["train", *SMALL, "steps=1", f"output={tmp_path}/r", *words]) == 2
    assert capsys.readouterr().err.startswith(f"keodrift: {argument}: got ")
    assert not (tmp_path / "r").exists()


def test_a_training_does_not_depend_on_the_default_dtype(tmp_path):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert main(["train", *SMALL, "steps=1", f"output={tmp_path}/r"]) == 0
    finally:
        torch.set_default_dtype(before)


def test_a_sweep_tells_a_mistake_of_its_last_run_before_the_first(tmp_path, capsys):
    command = ["train", "-m", *SMALL, "steps=1", f"output={tmp_path}/r", "drift.tau=0.1,-1"]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("keodrift: tau: got -1")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("word", ["~scheduler", "scheduler=null"])
def test_a_group_that_is_taken_away_on_resume_is_named(tmp_path, capsys, word):
    command = ["train", *SMALL, "steps=2", f"output={tmp_path}/r"]
    assert main([*command, "scheduler=cosine", "drift=one_sided"]) == 0
    assert main([*command, "resume=true", word]) == 2
    said = capsys.readouterr().err
    assert "scheduler.T_max" in said and "drift." not in said


def test_an_unknown_command_ends_in_one_sentence(capsys):
    assert main(["dance"]) == 2
    assert "dance" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"]])
def test_help_shows_groups_and_keys(capsys, arguments):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "drift: relaxed" in shown and "usage" in shown
    assert "  max_half_steps: 2000" in shown and "  residual_scale: 0.9" in shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{kd.__version__}\n"


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


def test_a_run_of_a_sweep_that_fails_does_not_end_the_others(tmp_path, capsys):
    command = ["train", "-m", *SMALL, "steps=2", f"output={tmp_path}"]
    assert main([*command, "optimizer.lr=0.1,1e30,0.2", "seed=0"]) == 1
    said = capsys.readouterr()
    runs = sorted(path.parent.name for path in tmp_path.glob("*/result.json"))
    assert runs == ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert all(f"{run}: W2^2" in said.out for run in runs)
    last = said.err.splitlines()[-1]
    assert last.startswith("keodrift: 1 of 3 runs failed: optimizer.lr=1e+30: ")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed=0"], "a list of values"),
        (["seed=0,1", "drift=sinkhorn,magnetic"], "magnetic"),
        (["seed=0,1", "]["], "config"),
        (["drift=glob(*)"], "such as seed=0,1,2"),
        (["drift.tau=interval(0.1,1)"], "such as seed=0,1,2"),
    ],
)
def test_a_wrong_sweep_ends_in_one_sentence_before_any_run(tmp_path, capsys, overrides, words):
    code = main(["train", "-m", *SMALL, "steps=1", f"output={tmp_path}/sweep", *overrides])
    said = capsys.readouterr().err
    assert code == 2 and words in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


def test_the_reach_of_a_config_is_that_of_its_data():
    config = compose("train", ["data=two_modes", "drift=relaxed"])
    task, trainer = runs.prepare(config)
    (drift,) = trainer.objective.drifts
    target = get_target("two_modes").sample(2000, torch.Generator().manual_seed(4))
    assert drift.reach == kd.reach_for_gaps(target) == task.reach()
    config.drift.reach = 3.0
    assert runs.prepare(config)[1].objective.drifts[0].reach == 3.0


def test_multirun_is_asked_for_anywhere_and_two_runs_need_two_folders(tmp_path, capsys):
    words = ["train", "steps=1", "batch=8", "evaluate_samples=10", f"output={tmp_path}"]
    assert main([*words, "seed=0,1", "-m"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"seed=0", "seed=1"}
    words = ["train", "-m", "task=latents", "data=folder", "data.path=a/b.npz,a_b.npz"]
    assert main(words) == 2
    assert "values that name different folders" in capsys.readouterr().err


def test_a_figure_is_named_once(capsys):
    assert main(["reproduce", "fig2", "figure=fig1"]) == 2
    assert "figure: got figure=fig1, needs fig2 alone" in capsys.readouterr().err


def test_configs_are_composed_inside_another_hydra_program_and_in_threads(tmp_path):
    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    with initialize_config_dir(str(tmp_path), version_base="1.1"):
        assert compose("train", ["seed=3"]).seed == 3
        assert hydra_compose("mine").answer == 42
        assert str(VersionBase.instance().version_base) == "1.1"
    with ThreadPoolExecutor(4) as pool:
        seeds = pool.map(lambda seed: compose("train", [f"seed={seed}"]).seed, range(8))
    assert list(seeds) == list(range(8))


@pytest.mark.parametrize("group", ["scheduler", "guidance", "classifier", "experiment"])
def test_a_config_may_be_without_a_group(group):
    assert compose("train", [f"{group}=null"]) == compose("train")
    if group != "experiment":
        assert compose("train", ["experiment=mnist_paper", f"{group}=null"])[group] is None


def test_a_scheduler_takes_the_place_of_that_of_an_experiment():
    told = compose("train", ["experiment=mnist_paper", "scheduler=cosine"]).scheduler
    assert told == compose("train", ["scheduler=cosine"]).scheduler


@pytest.mark.parametrize(
    "value", ["a\\", "a\\'b", "${seed}", "$5", "x\\y", "of, many = signs", "it's"]
)
def test_a_quoted_value_is_the_value(value):
    assert compose("train", [f"output={quoted(value)}"]).output == value


class Own(torch.nn.Module):
    """A network of one's own, which is told no seed."""

    noise_dim = 2

    def __init__(self, made=2):
        super().__init__()
        self.settings = {"made": made}
        self.linear = torch.nn.Linear(2, made)

    def forward(self, noise):
        return self.linear(noise)


def own(tmp_path, *words):
    """A config whose network is that one."""
    keys = ("noise_dim", "dim", "width", "blocks", "residual_scale", "output_std", "seed")
    small = [word for word in SMALL if not word.startswith("network")]
    return compose(
        "train",
        [*small, "network=residual_mlp", *(f"~network.{key}" for key in keys), "steps=1",
         f"output={tmp_path}/own", *words, "network._target_=test_cli.Own"],
    )  # fmt: skip


def test_the_seed_decides_a_network_of_ones_own(tmp_path):
    before = torch.get_rng_state()
    weights = [
        runs.prepare(own(tmp_path, f"seed={seed}"))[1].state.network.linear.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_that_does_not_fit_the_data_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ArgumentError, match=r"^(x|y|network): got .*(3|2)"):
        runs.train(own(tmp_path, "+network.made=3"))
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    "word", ["steps=0", "ema=2", "drift.tau=-1", "optimizer.lr=-1", "clip=-1", "negatives=masked"]
)
def test_mistakes_that_need_no_data_are_told_before_any_are_made(tmp_path, monkeypatch, word):
    def never(*args, **kwargs):
        raise AssertionError("data were made")

    monkeypatch.setattr("keodrift.data.get_target", never)
    assert main(["train", *SMALL, f"output={tmp_path}/none", word]) == 2


def test_a_figure_that_fails_does_not_lose_the_numbers(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("keodrift.plots.plot_samples", broken)
    with pytest.raises(RuntimeError, match="no fonts"):
        main(["train", *SMALL, "steps=2", f"output={tmp_path}/run"])
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"result.json", "samples.npz", "network.safetensors"} <= files
