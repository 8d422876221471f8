"""A run folder out of a config: built, trained, and written where it can be resumed."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from keodrift.configuration import refuse_change
from keodrift.drifts.draws import check_seed, seeded
from keodrift.errors import ArgumentError, MissingDependencyError, OptionError, RunError
from keodrift.exports import described, save_network
from keodrift.files import atomic_path, claimed, write_json
from keodrift.tasks import Task
from keodrift.training import Batch, BatchSource, Objective, Trainer, grouped_parameters

RESULTS = "result.json", "network.safetensors", "samples.npz"  # of a run that came to its end


def build(node: Any, *args: Any) -> Any:
    """Builds what a config node with ``_target_`` describes; its own typed errors come through.

    Args:
        node: The config node.
        *args: Positional arguments to add, for nodes with ``_partial_``.

    Raises:
        OptionError: The node does not fit its target.

    Example:
        >>> from keodrift.configuration import compose
        >>> build(compose("train", ["drift=sinkhorn"]).drift).tau
        0.05
    """
    if not (isinstance(node, DictConfig) and "_target_" in node):
        raise OptionError("config", node, "a node that says what to build, as _target_")
    try:
        made = instantiate(node, _convert_="all")  # lists, which a checkpoint can hold
        return made(*args) if args else made
    except (InstantiationException, OmegaConfBaseException, TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        if isinstance(error.__cause__, (ArgumentError, MissingDependencyError, RunError)):
            raise error.__cause__ from error
        reason = " ".join(str(error.__cause__ or error).split())
        raise OptionError(str(node.get("_target_")), dict(node), f"a fix: {reason}") from error


def _refuse_other_data(task: Any, data: Any) -> None:
    """Refuses data that the task does not take before they are made, as far as both say."""
    try:
        made = get_type_hints(get_object(data._target_)).get("return")
        kind: type = get_object(task._target_)
        takes = get_type_hints(kind)[next(iter(signature(kind).parameters))]
    except Exception:  # what cannot be read is judged once it is built
        return
    if issubclass(kind, Task) and isinstance(made, type) and isinstance(takes, type):
        kind.check_data(made, takes)


def _network(node: Any, task: Task, seed: int) -> nn.Module:
    """The network of a node; what is ``auto`` in it is what the task's data need."""
    known = task.network_defaults()
    auto = [key for key in node if node[key] == "auto"]
    for key in auto:
        if key not in known:
            raise OptionError(f"network.{key}", "'auto'", f"a value: auto are {', '.join(known)}")
    with seeded(seed):  # a network of one's own may not be told the seed
        return build(OmegaConf.merge(node, {key: known[key] for key in auto}))


def _objective(config: Any, task: Task | None = None) -> Objective:
    """The loss by the drift of a node with ``_target_``, or by those of a mapping of such nodes.

    A ``reach`` of ``auto`` is that of the gaps of the task's data; without a task it is 1.
    """
    node, drifts = config.drift, []
    for one in [node] if "_target_" in node else node.values():
        if isinstance(one, DictConfig) and one.get("reach") == "auto":
            reach = 1.0
            if task is not None:
                reach = task.reach(
                    one.get("cost", "half_squared"),
                    relative=one.get("relative", False),
                    scaled=config.objective.get("scale_features", False),
                )
            one = OmegaConf.merge(one, {"reach": reach})
        drifts.append(build(one))
    objective = build(config.objective, drifts)
    if isinstance(objective, Objective):
        objective.check(fresh=config.negatives == "fresh", balanced=config.balanced)
    return objective


def _trainer(
    config: Any, network: nn.Module, batches: BatchSource, objective: Objective, task: Task | None
) -> Trainer:
    optimizer = build(config.optimizer, grouped_parameters(network, config.rates or {}))
    trainer = Trainer(
        network,
        batches,
        objective,
        optimizer,
        torch.Generator(_device(config.device)).manual_seed(config.seed),
        scheduler=None if config.scheduler is None else build(config.scheduler, optimizer),
        ema=config.ema,
        clip=config.clip,
        precision=config.precision,
        evaluate=None if task is None else task.evaluate,
        evaluate_every=config.evaluate_every,
        folder=config.output,
        checkpoint_every=config.checkpoint_every,
        progress=config.progress,
    )
    trainer.check(config.steps, resume=config.resume)
    return trainer


def rehearse(config: Any) -> None:
    """Builds all that needs no data, which may take minutes to make, on a network of one weight.

    Args:
        config: As for `train`.

    Raises:
        ArgumentError: The config asks for something impossible, as far as that shows without data.
    """

    def none(generator: torch.Generator) -> Batch:
        raise NotImplementedError

    few = OmegaConf.merge(config, {"rates": None})
    with seeded(config.seed):
        network = nn.Linear(1, 1, bias=False)
    state = _trainer(few, network, none, _objective(config), None).state
    network.weight.sum().backward()
    for name, one in (("optimizer", state.optimizer), ("scheduler", state.scheduler)):
        try:
            if one is not None:
                one.step()
        except Exception as error:  # of a class of one's own, or one that needs something else
            got, reason = dict(config[name]), " ".join(str(error).split())
            raise OptionError(name, got, f"one that makes a step ({reason})") from error


def _refuse_unfit(task: Task, network: nn.Module) -> None:
    """Looks at the network as the judge will: what is wrong with it need not wait for a step."""
    try:
        task.evaluate(network)
    except ArgumentError:
        raise
    except Exception as error:  # of a network of one's own
        got, reason = type(network).__name__, " ".join(str(error).split())
        raise OptionError(
            "network", got, f"one that samples what the data are ({reason})"
        ) from error


def _device(name: str) -> torch.device:
    try:
        return torch.Generator(torch.empty(0, device=name).device).device
    except (RuntimeError, AssertionError) as error:
        raise OptionError("device", repr(name), "a device that this torch can use") from error


def prepare(config: Any) -> tuple[Task, Trainer]:
    """The task and the trainer of a config; nothing is written.

    Args:
        config: As for `train`.

    Raises:
        ArgumentError: The config asks for something impossible.
    """
    if not config.output:
        raise OptionError("output", repr(config.output), "a folder")
    check_seed("seed", config.seed)
    if not config.resume:
        for name in RESULTS:
            if (Path(config.output) / name).exists():
                got = f"{config.output}, which holds {name} of another run"
                raise OptionError("output", got, "resume=true, or another folder")
    device = _device(config.device)
    for name in ("guidance", "classifier"):
        if config[name] is not None and name not in config.task:
            raise OptionError(name, "one", f"null: {config.task._target_} takes none")
    if config.resume:
        refuse_change(config)
    rehearse(config)
    _refuse_other_data(config.task, config.data)
    task = build(config.task, build(config.data))
    network = _network(config.network, task, config.seed).to(device)
    described(network)  # or it could not be kept
    trainer = _trainer(config, network, task.batches(network), _objective(config, task), task)
    _refuse_unfit(task, trainer.average)
    return task, trainer


def train(config: Any, prepared: tuple[Task, Trainer] | None = None) -> dict[str, Any]:
    """Runs ``keodrift train`` with a composed config.

    Args:
        config: `keodrift.configuration.compose` of ``"train"``, or `compose_run` there.
        prepared: What `prepare` gave for it, if it was called before.

    Returns:
        The final numbers, which the run folder's ``result.json`` holds too.

    Raises:
        ArgumentError: The config asks for something impossible, or another process trains in the
            folder; nothing has been written then.
        DivergedError: The training diverged; what was kept before stays.
    """
    task, trainer = prepared or prepare(config)
    folder = Path(config.output)
    with claimed(folder, "output"):
        with atomic_path(folder / "config.yaml") as draft:
            OmegaConf.save(config, draft)
        history = trainer.run(config.steps, resume=config.resume)
        save_network(trainer.average, folder / "network.safetensors")
        result = {"steps": trainer.step, **task.judge(trainer.average, folder)}
        result["seconds"] = history[-1]["seconds"]
        write_json(folder / "result.json", result)
        task.draw(trainer.average, history, folder)
    return result
