"""A run folder out of a config: composed by Hydra, trained, and written where it can be resumed.

Configs live in `config_dir`, one group a folder: task, drift, data, network, optimizer and others.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from filelock import FileLock, Timeout
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from keodrift.drifts import Drift
from keodrift.errors import ArgumentError, MissingDependencyError, OptionError, RunError
from keodrift.exports import described, save_network
from keodrift.files import atomic_path, reading, write_json
from keodrift.tasks import Task
from keodrift.training import Trainer, checkpoints, grouped_parameters

# What may differ between the command that began a run and the one that resumes it.
_FREE_ON_RESUME = ("output", "resume", "steps", "progress")


@dataclass
class TrainConfig:
    """The types of the keys of ``train.yaml``, which says what each means and its default."""

    task: Any = MISSING
    drift: Any = MISSING
    data: Any = MISSING
    network: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = None
    guidance: Any = None
    classifier: Any = None
    objective: Any = MISSING
    output: str = MISSING
    resume: bool = MISSING
    seed: int = MISSING
    device: str = MISSING
    batch: int = MISSING
    data_batch: int | None = None
    negatives: str = MISSING
    balanced: bool = MISSING
    steps: int = MISSING
    ema: float = MISSING
    rates: dict[str, float] | None = None
    clip: float | None = MISSING
    precision: str = MISSING
    evaluate_every: int = MISSING
    evaluate_samples: int = MISSING
    checkpoint_every: int = MISSING
    progress: bool = MISSING


_SCHEMAS = {"train": TrainConfig}


def config_dir() -> Path:
    """The folder of Hydra configs: inside an installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: Neither place has them.

    Example:
        >>> (config_dir() / "train.yaml").exists()
        True
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").exists():
            return folder
    raise FileNotFoundError(f"no configs in {package} or beside it; reinstall keodrift")


@contextmanager
def _one_sentence(argument: str, got: object) -> Iterator[None]:
    """What Hydra, OmegaConf or YAML refuse, as a typed error."""
    try:
        yield
    except ArgumentError:
        raise
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        reason = f"{error} {error.__cause__ or ''}".partition("object_type")[0].replace(
            "full_key:", "in"
        )
        # Hydra's advice would be refused as well: only what a node builds may take more keys.
        reason = re.sub(r"To append to your config use \+[^.=]*=\S*", "", reason)
        raise OptionError(argument, got, f"a fix: {' '.join(reason.split())}") from error


def compose(name: str, overrides: Sequence[str] = ()) -> Any:
    """Composes a config by name from `config_dir`.

    Args:
        name: The file's stem, such as ``"train"``.
        overrides: Hydra overrides, such as ``"drift.tau=0.02"``.

    Raises:
        OptionError: An override names an unknown choice or key, or a value is of another type.

    Example:
        >>> compose("train", ["drift=one_sided"]).drift.tau
        0.05
    """
    with (
        _one_sentence("config", repr(" ".join(overrides))),
        initialize_config_dir(str(config_dir()), version_base=None),
    ):
        for one in _parse(overrides):
            if re.match(r"hydra\b", one.key_or_group):
                raise OptionError(one.key_or_group, one.value(), "a key of keodrift")
        config = OmegaConf.merge(_SCHEMAS[name], hydra_compose(name, list(overrides)))
        for key in sorted(OmegaConf.missing_keys(config)):
            raise OptionError(key, "nothing", "a value")
        return config


def compose_run(overrides: Sequence[str]) -> Any:
    """Composes what ``keodrift train`` is told; with ``resume=true``, over the folder's config.

    Args:
        overrides: Hydra overrides; one that resumes needs no more than ``output``.

    Raises:
        OptionError: As `compose`, or there is no run to resume.
    """
    config = compose("train", overrides)
    if not config.resume:
        return config
    resumed = _saved(Path(config.output))
    for name in (one.get_key_element().lstrip("+") for one in _parse(overrides)):
        told = OmegaConf.select(config, name, default=MISSING)
        if told == MISSING:
            return config  # an experiment, which is no key but the setting as a whole
        OmegaConf.update(resumed, name, told, merge=False, force_add=True)
    return resumed


def _saved(folder: Path) -> Any:
    """The config of the run in a folder; a key that is younger than the run has its default."""
    path, config = folder / "config.yaml", compose("train")
    if not path.is_file():
        raise OptionError("resume", f"{folder}, which holds no run", "output=<an earlier run>")
    with _one_sentence("resume", path):
        saved = OmegaConf.load(path)
        if not isinstance(saved, DictConfig):
            raise OptionError("resume", path, "a config: keys and their values")
        for key in saved:
            config[key] = saved[key]
    return config


def _leaves(config: Any) -> dict[str, Any]:
    """All values of a config by their dotted key."""

    def walk(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, Mapping):
            for key, value in node.items():
                yield from walk(f"{prefix}{key}.", value)
        else:
            yield prefix[:-1], node

    with _one_sentence("config", "a value"):
        return dict(walk("", OmegaConf.to_container(config, resolve=True)))


def _refuse_change(config: Any) -> None:
    """Says which values differ from those of the run in the config's folder."""
    before, now = _leaves(_saved(Path(config.output))), _leaves(config)
    changed = [
        f"{key} ({before.get(key)}, now {now.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in _FREE_ON_RESUME
    ]
    if changed:
        got = f"a config that changed in {', '.join(changed)}"
        raise OptionError("resume", got, "the config of the run")


def build(node: Any, *args: Any) -> Any:
    """Builds what a config node with ``_target_`` describes; its own typed errors come through.

    Args:
        node: The config node.
        *args: Positional arguments to add, for nodes with ``_partial_``.

    Raises:
        OptionError: The node does not fit its target.

    Example:
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


def _network(node: Any, task: Task) -> nn.Module:
    """The network of a node; what is ``auto`` in it is what the task's data need."""
    known = task.network_defaults()
    auto = [key for key in node if node[key] == "auto"]
    for key in auto:
        if key not in known:
            raise OptionError(f"network.{key}", "'auto'", f"a value: auto are {', '.join(known)}")
    return build(OmegaConf.merge(node, {key: known[key] for key in auto}))


def _drifts(node: Any, task: Task) -> list[Drift]:
    """The drift of a node with ``_target_``, or those of a mapping of such nodes.

    A ``reach`` of ``auto`` is that of the gaps of the task's data.
    """
    drifts = []
    for one in [node] if "_target_" in node else node.values():
        if isinstance(one, DictConfig) and one.get("reach") == "auto":
            relative = one.get("relative", False)
            reach = task.reach(one.get("cost", "half_squared"), relative=relative)
            one = OmegaConf.merge(one, {"reach": reach})
        drifts.append(build(one))
    return drifts


def _device(name: str) -> torch.device:
    try:
        return torch.Generator(torch.empty(0, device=name).device).device
    except (RuntimeError, AssertionError) as error:
        raise OptionError("device", repr(name), "a device that this torch can use") from error


def _build(config: Any) -> tuple[Task, Trainer]:
    """The task and the trainer of a config; nothing is written."""
    if not config.output:
        raise OptionError("output", repr(config.output), "a folder")
    device = _device(config.device)
    for name in ("guidance", "classifier"):
        if config[name] is not None and name not in config.task:
            raise OptionError(name, "one", f"null: {config.task._target_} takes none")
    _refuse_other_data(config.task, config.data)
    task = build(config.task, build(config.data))
    network = _network(config.network, task).to(device)
    described(network)  # or it could not be kept
    objective = build(config.objective, _drifts(config.drift, task))
    objective.check(fresh=config.negatives == "fresh", balanced=config.balanced)
    optimizer = build(config.optimizer, grouped_parameters(network, config.rates or {}))
    trainer = Trainer(
        network,
        task.batches(network),
        objective,
        optimizer,
        torch.Generator(device).manual_seed(config.seed),
        scheduler=None if config.scheduler is None else build(config.scheduler, optimizer),
        ema=config.ema,
        clip=config.clip,
        precision=config.precision,
        evaluate=task.evaluate,
        evaluate_every=config.evaluate_every,
        folder=config.output,
        checkpoint_every=config.checkpoint_every,
        progress=config.progress,
    )
    trainer.check(config.steps, resume=config.resume)
    if config.resume:
        _refuse_change(config)
    return task, trainer


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a run folder."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        got = f"{folder}, where another process is training"
        raise OptionError("output", got, "another folder, or patience") from error
    except OSError as error:
        raise OptionError("output", folder, f"a folder to write to: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def train(config: Any) -> dict[str, Any]:
    """Runs ``keodrift train`` with a composed config.

    Args:
        config: `compose` of ``"train"``, or `compose_run`.

    Returns:
        The final numbers, which the run folder's ``result.json`` holds too.

    Raises:
        ArgumentError: The config asks for something impossible, or another process trains in the
            folder; nothing has been written then.
        DivergedError: The training diverged; what was kept before stays.
    """
    task, trainer = _build(config)
    folder = Path(config.output)
    with _claimed(folder):
        with atomic_path(folder / "config.yaml") as draft:
            OmegaConf.save(config, draft)
        history = trainer.run(config.steps, resume=config.resume)
        save_network(trainer.average, folder / "network.safetensors")
        result = {"steps": trainer.step, **task.judge(trainer.average, history, folder)}
        result["seconds"] = history[-1]["seconds"]
        write_json(folder / "result.json", result)
    return result


def sweep(overrides: Sequence[str]) -> dict[str, Any]:
    """Composes one run for every combination of the values that overrides list.

    A run that was cut off is to be resumed; one that is done, see `finished`.

    Args:
        overrides: Hydra overrides, such as ``"drift.tau=0.02,0.05"``.

    Returns:
        The config of each run, by the name of its folder inside ``output``.

    Raises:
        ArgumentError: An override is wrong, none lists several values, or a folder holds the run
            of another config.
    """
    parsed = _parse(overrides)
    swept = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        for one in parsed
        if one.is_sweep_override()
    ]
    if not swept:
        raise OptionError("-m", repr(" ".join(overrides)), "a list of values, such as seed=0,1,2")
    fixed = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    configs = {}
    for values in itertools.product(*swept):
        config = compose("train", [*fixed, *values])
        name = ",".join(values).replace("/", "_")
        config.output = str(Path(config.output) / name)
        config.resume = bool(checkpoints(config.output))
        if config.resume or finished(config) is not None:
            _refuse_change(config)
        configs[name] = config
    return configs


def finished(config: Any) -> dict[str, Any] | None:
    """The result of a run that is done in the config's folder, or None.

    Raises:
        RunError: Its ``result.json`` is damaged.
    """
    path = Path(config.output) / "result.json"
    if not path.exists():
        return None
    with reading(path):
        result = json.loads(path.read_text())
        return result if result["steps"] >= config.steps else None


def _parse(overrides: Sequence[str]) -> list[Override]:
    with _one_sentence("config", repr(" ".join(overrides))):
        return OverridesParser.create().parse_overrides(list(overrides))
