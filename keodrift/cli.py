"""The ``keodrift`` command: configs in, run folders and figures out.

``keodrift train drift=sinkhorn data=spiral drift.tau=0.05 output=outputs/spiral``

What is wrong with a command or a config is said in one sentence on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from keodrift.errors import OptionError
from keodrift.papers import FIGURES, reproduce
from keodrift.runs import compose, config_dir, multirun, train
from keodrift.settings import exit_status, read_settings

USAGE = """usage: keodrift train [-m] [group=choice …] [key=value …]
       keodrift reproduce FIGURE [--quick] [key=value …]

train trains a one-step generator on a 2D target; with -m it does so for every combination of
comma-separated values, each in a folder of its own inside output. reproduce runs what is missing of
a figure of the papers and draws it. Groups and keys:

"""


def _reproduce(arguments: Sequence[str]) -> None:
    names = [word for word in arguments if "=" not in word and word != "--quick"]
    for word in names:
        if word.startswith("-"):
            raise OptionError(word, "an unknown flag", "--quick or key=value")
    if len(names) != 1:
        raise OptionError("figure", repr(" ".join(names)), f"one of {', '.join(FIGURES)}")
    words = [f"figure={names[0]}", *(word for word in arguments if "=" in word)]
    words += ["quick=true"] * ("--quick" in arguments)
    config = read_settings(words, config_dir() / "reproduce.yaml")
    report = reproduce(
        config.figure,
        config.output,
        quick=config.quick,
        experiment=config.experiment,
        workers=config.workers,
        limit=config.limit,
        progress=config.progress,
    )
    print(report.page)
    print(f"The figure and the table are in {config.output}.")


def _train(arguments: Sequence[str]) -> None:
    if arguments[:1] in (["-m"], ["--multirun"]):
        for name, found in multirun(arguments[1:]).items():
            print(f"{name}: W2^2 {found['w2']:.3g} (real samples {found['w2_floor']:.3g})")
        return
    config = compose("train", arguments)
    result = train(config)
    floor = f"real samples score {result['w2_floor']:.3g}"
    print(f"W2^2 {result['w2']:.3g} after {result['steps']} steps ({floor}); see {config.output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``keodrift`` command.

    Args:
        arguments: Command line without the program's name; the process's own if None.

    Returns:
        0 on success, 1 if a run failed, 2 if the command line or the config is wrong, 130 if it
        was interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"train": _train, "reproduce": _reproduce}
    if not arguments or {"-h", "--help"} & set(arguments):
        asked = [name for name in commands if name in arguments[:1]] or commands
        print(USAGE + "\n".join((config_dir() / f"{name}.yaml").read_text() for name in asked))
        return 0

    def run() -> None:
        if arguments[0] not in commands:
            raise OptionError("command", repr(arguments[0]), " or ".join(map(repr, commands)))
        commands[arguments[0]](arguments[1:])

    return exit_status("keodrift", run)
