"""Configs of runs, composed by Hydra: from words, over that of an earlier run, or many at once.

They live in `config_dir`, one group a folder: task, drift, data, network, optimizer and others.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from keodrift.errors import ArgumentError, OptionError
from keodrift.files import reading
from keodrift.training import checkpoints

# What may differ between the command that began a run and the one that resumes it, and with it all
# that is interpolated from it; of the steps only their number, since a schedule is not stretched.
_FREE_ON_RESUME = ("output", "resume", "progress", "checkpoint_every")
_PATHS = "output", "path", "source"  # keys whose values name files


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
_OPTIONAL = "scheduler", "guidance", "classifier", "experiment"
_HYDRA = threading.RLock()


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


@contextmanager
def _hydra_of_its_own() -> Iterator[None]:
    """Hydra has one state a process: a program around this keeps its own, threads take turns."""
    with _HYDRA:
        before, version = GlobalHydra.instance().hydra, VersionBase.instance().version_base
        GlobalHydra.instance().clear()
        try:
            yield
        finally:  # of what may be another object by now
            GlobalHydra.instance().hydra = before
            VersionBase.instance().version_base = version


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
        _hydra_of_its_own(),
        initialize_config_dir(str(config_dir()), version_base=None),
    ):
        parsed = _parse(overrides)
        for one in parsed:
            if re.match(r"hydra\b", one.key_or_group):
                raise OptionError(one.key_or_group, one.value(), "a key of keodrift")
        words = [_without_group(one) or str(one.input_line) for one in parsed]
        config = OmegaConf.merge(_SCHEMAS[name], hydra_compose(name, words))
        for key in sorted(OmegaConf.missing_keys(config)):
            raise OptionError(key, "nothing", "a value")
        return config


def _without_group(override: Override) -> str | None:
    """What Hydra calls ``group=null``, where a config may be without the group."""
    nothing = override.key_or_group in _OPTIONAL and override.value() is None
    return f"~{override.key_or_group}" if nothing and override.type == OverrideType.CHANGE else None


def quoted(value: object) -> str:
    """A value as an override takes it, whatever signs it holds.

    Example:
        >>> compose("train", [f"output={quoted('of, many = signs')}"]).output
        'of, many = signs'
    """
    # A backslash escapes what follows it if that is a quote, an interpolation, or the end.
    text = re.sub(r"(\\+)(?='|\$\{|$)", r"\1\1", str(value))
    return "'" + re.sub(r"('|\$\{)", r"\\\1", text) + "'"


def compose_run(overrides: Sequence[str]) -> Any:
    """Composes what ``keodrift train`` is told; with ``resume=true``, over the folder's config.

    Args:
        overrides: Hydra overrides; one that resumes needs no more than ``output``.

    Raises:
        OptionError: As `compose`, or there is no run to resume.
    """
    parsed = _parse(overrides)
    if not any(one.key_or_group == "resume" and one.value() is True for one in parsed):
        return compose("train", overrides)
    # What lies in a group is told to the run's own, unless that or all of them are chosen anew.
    chosen = {None, *(one.key_or_group for one in parsed)}
    inside = [one for one in parsed if "experiment" not in chosen and _root(one) not in chosen]
    others = [one for one in parsed if one not in inside]
    config = compose("train", [str(one.input_line) for one in others])
    resumed = _saved(Path(config.output))
    for name in (one.get_key_element().lstrip("+~") for one in others):
        told = OmegaConf.select(config, name, default=MISSING)
        if told == MISSING:
            return config  # an experiment, which is no key but the setting as a whole
        OmegaConf.update(resumed, name, told, merge=False, force_add=True)
    OmegaConf.set_struct(resumed, False)
    for one in inside:
        group, _, name = one.key_or_group.rpartition(".")
        node = OmegaConf.select(resumed, group)
        if not isinstance(node, DictConfig):
            keys = ", ".join(str(key) for key in resumed)
            raise OptionError(one.key_or_group, "an unknown key", f"one inside of {keys}")
        if one.is_delete():
            node.pop(name, None)
        else:
            OmegaConf.update(resumed, one.key_or_group, one.value(), force_add=True)
    return resumed


def _root(override: Override) -> str | None:
    """The group of a key that lies inside of one."""
    root, dot, _ = override.key_or_group.partition(".")
    return root if dot and override.package is None else None


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


def refuse_change(config: Any) -> None:
    """Refuses a config that is not that of the run in its folder, but for how far it goes.

    Raises:
        OptionError: It says which values differ.
    """
    saved = _saved(Path(config.output))
    for key in _FREE_ON_RESUME:
        saved[key] = config[key]
    before, now = _leaves(saved), _leaves(config)
    changed = [
        f"{key} ({before.get(key)}, now {now.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key != "steps"
    ]
    if changed:
        got = f"a config that changed in {', '.join(changed)}"
        raise OptionError("resume", got, "the config of the run")


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
    swept = []
    for one in (one for one in parsed if one.is_sweep_override()):
        if not isinstance(one.value(), ChoiceSweep | RangeSweep):
            needs = "values, such as seed=0,1,2, choice(…) or range(…)"
            raise OptionError("-m", one.input_line, needs)
        swept.append([f"{one.get_key_element()}={v}" for v in one.sweep_string_iterator()])
    if not swept:
        raise OptionError("-m", repr(" ".join(overrides)), "a list of values, such as seed=0,1,2")
    fixed = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    configs = {}
    for values in itertools.product(*swept):
        config = compose("train", [*fixed, *values])
        name = ",".join(values).replace("/", "_")
        if name in configs:
            raise OptionError("-m", name, "values that name different folders")
        config.output = str(Path(config.output) / name)
        config.resume = bool(checkpoints(config.output))
        if config.resume or finished(config) is not None:
            refuse_change(config)
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
        result = json.loads(path.read_text(encoding="utf-8"))
        return result if result["steps"] >= config.steps else None


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser, parsed = OverridesParser.create(), []
    for word in overrides:
        key, equals, value = word.partition("=")
        try:
            parsed.append(parser.parse_override(word))
        except HydraException:
            # A path may hold any sign; elsewhere that is more likely a slip.
            path = equals and key.lstrip("+").split(".")[-1] in _PATHS
            with _one_sentence("config", repr(word)):
                parsed.append(parser.parse_override(f"{key}={quoted(value)}" if path else word))
    return parsed
