"""The ``keodrift`` command: configs in, run folders and figures out.

``keodrift train drift=sinkhorn data=spiral drift.tau=0.02 output=outputs/spiral``

What is wrong with a command or a config is said in one sentence on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from omegaconf import OmegaConf

from keodrift.configuration import compose, compose_run, config_dir, finished, sweep
from keodrift.errors import OptionError, RunError
from keodrift.papers import FIGURES, reproduce
from keodrift.runs import rehearse, train
from keodrift.settings import exit_status, read_settings

USAGE = """usage: keodrift train [-m] [group=choice …] [key=value …]
       keodrift reproduce FIGURE [--quick] [key=value …]
       keodrift --version

train trains a one-step network of a 2D target or of labelled latents; with -m it does so for every
combination of comma-separated values, each in a folder of its own inside output. reproduce runs
what is missing of a figure of the papers and draws it. Groups and keys:

"""


def _reproduce(arguments: Sequence[str]) -> None:
    names = [word for word in arguments if "=" not in word and word != "--quick"]
    for word in names:
        if word.startswith("-"):
            raise OptionError(word, "an unknown flag", "--quick or key=value")
    if len(names) != 1:
        raise OptionError("figure", repr(" ".join(names)), f"one of {', '.join(FIGURES)}")
    words = [word for word in arguments if "=" in word]
    if any(word.startswith("figure=") for word in words):
        raise OptionError("figure", " ".join(words), f"{names[0]} alone")
    words.insert(0, f"figure={names[0]}")
    words += ["quick=true"] * ("--quick" in arguments)
    config = read_settings(words, config_dir() / "reproduce.yaml")
    report = reproduce(
        config.figure,
        config.output,
        quick=config.quick,
        experiment=config.experiment,
        fields=config.fields,
        data=config.data,
        workers=config.workers,
        limit=config.limit,
        progress=config.progress,
    )
    print(report.page)
    print(f"The figure and the table are in {config.output}.")


def _train(arguments: Sequence[str]) -> None:
    several = {"-m", "--multirun"}
    if several & set(arguments):
        return _sweep([word for word in arguments if word not in several])
    config = compose_run(arguments)
    result = train(config)
    print(f"{_numbers(result)} after {result['steps']} steps; see {config.output}")


def _sweep(arguments: Sequence[str]) -> None:
    """Trains what is not done yet, one run after the other, whatever becomes of the others."""
    failed, configs = [], sweep(arguments)
    for config in configs.values():  # a mistake of the last is told before the first has trained
        rehearse(config)
    for count, (name, config) in enumerate(configs.items(), 1):
        result = finished(config)
        if result is None:
            print(f"{count} of {len(configs)}: {name}", file=sys.stderr)
            try:
                result = train(config)
            except Exception as error:
                failed.append(f"{name}: {' '.join(str(error).split())}")
                continue
        print(f"{name}: {_numbers(result)}")
    if failed:
        raise RunError(f"{len(failed)} of {len(configs)} runs failed: {'; '.join(failed)}")


def _numbers(result: dict[str, Any]) -> str:
    return f"W2^2 {result['w2_squared']:.3g} (real samples score {result['w2_squared_floor']:.3g})"


def _help(arguments: Sequence[str]) -> None:
    asked = [name for name in COMMANDS if name in arguments[:1]] or list(COMMANDS)
    pages = ((config_dir() / f"{name}.yaml").read_text(encoding="utf-8") for name in asked)
    print(USAGE + "\n".join(pages))
    if "train" in asked:
        config = compose("train", [word for word in arguments if "=" in word])
        print(f"train, composed:\n\n{OmegaConf.to_yaml(config)}")


COMMANDS = {"train": _train, "reproduce": _reproduce}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``keodrift`` command.

    Args:
        arguments: Command line without the program's name; the process's own if None.

    Returns:
        0 on success, 1 if a run failed, 2 if the command line or the config is wrong, 130 if it
        was interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        if arguments == ["--version"]:
            print(version("keodrift"))
        elif not arguments or {"-h", "--help"} & set(arguments):
            _help(arguments)
        elif arguments[0] not in COMMANDS:
            raise OptionError("command", repr(arguments[0]), " or ".join(map(repr, COMMANDS)))
        else:
            COMMANDS[arguments[0]](arguments[1:])

    # Modules of the working folder are found, for decoders and drifts of one's own.
    here = [] if "" in sys.path else [""]
    sys.path += here
    try:
        return exit_status("keodrift", run)
    finally:
        for path in here:
            sys.path.remove(path)
