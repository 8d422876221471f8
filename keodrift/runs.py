"""A run folder out of a config: composed by Hydra, trained, and written where it can be resumed.

Configs live in `config_dir`, one group a folder: drift, data, generator, optimizer, experiment.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keodrift import metrics, plots
from keodrift.data import sample_target, target_modes
from keodrift.data.targets import TARGETS
from keodrift.errors import ArgumentError, MissingDependencyError, OptionError
from keodrift.files import atomic_path, write_json
from keodrift.generators import sample
from keodrift.training import Trainer, target_batches

# What may differ between the command that began a run and the one that resumes it.
_FREE_ON_RESUME = ("resume", "steps", "progress")


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


def compose(name: str, overrides: Sequence[str] = ()) -> Any:
    """Composes a config by name from `config_dir`.

    Args:
        name: The file's stem, such as ``"train"``.
        overrides: Hydra overrides, such as ``"drift.tau=0.05"``.

    Raises:
        OptionError: An override names an unknown choice or key.
        MissingDependencyError: Hydra is not installed.

    Example:
        >>> compose("train", ["drift=one_sided"]).drift.tau
        0.1
    """
    try:
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        raise MissingDependencyError("hydra-core", "the command line", "cli") from error
    with initialize_config_dir(str(config_dir()), version_base=None):
        try:
            return hydra_compose(name, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            reason = " ".join(str(error).split())
            raise OptionError("config", repr(" ".join(overrides)), f"a fix: {reason}") from error


def build(node: Any, *args: Any) -> Any:
    """Builds what a config node with ``_target_`` describes; its own typed errors come through.

    Args:
        node: The config node.
        *args: Positional arguments to add, for nodes with ``_partial_``.

    Raises:
        OptionError: The node does not fit its target.

    Example:
        >>> build(compose("train").drift).tau
        0.1
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        made = instantiate(node)
        return made(*args) if args else made
    except (InstantiationException, TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        if isinstance(error.__cause__, ArgumentError):
            raise error.__cause__ from error
        reason = " ".join(str(error.__cause__ or error).split())
        raise OptionError(str(node.get("_target_")), dict(node), f"a fix: {reason}") from error


def _check_folder(config: Any, folder: Path) -> None:
    saved = folder / "config.yaml"
    if not config.resume and (folder / "checkpoint.pt").exists():
        raise OptionError(
            "output", f"{folder}, which holds a run", "another folder, or resume=true"
        )
    if config.resume:
        if not saved.exists():
            raise OptionError("resume", f"{folder}, which holds no run", "output=<an earlier run>")
        _refuse_change(config, saved)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a run folder."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        got = f"{folder}, where another process is training"
        raise OptionError("output", got, "another folder, or patience") from error
    try:
        yield
    finally:
        lock.release()


def _refuse_change(config: Any, saved: Path) -> None:
    """Says which keys differ from those of the run in a folder."""
    from omegaconf import OmegaConf

    # A key that is younger than the run has its default there.
    started = {**compose("train"), **OmegaConf.load(saved)}
    before, now = (
        {str(key): value for key, value in one.items() if key not in _FREE_ON_RESUME}
        for one in (started, config)
    )
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise OptionError(
            "resume", f"a config that changed in {', '.join(changed)}", "the config of the run"
        )


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise OptionError("device", repr(name), "a device that this torch can use") from error


def train(config: Any) -> dict[str, float]:
    """Runs ``keodrift train`` with a composed config.

    Args:
        config: `compose` of ``"train"``.

    Returns:
        The final numbers, which the run folder's ``result.json`` holds too.

    Raises:
        ArgumentError: The config asks for something impossible, or another process trains in the
            folder; nothing has been written then.
    """
    from omegaconf import OmegaConf

    if config.data.target not in TARGETS:
        raise OptionError("data.target", repr(config.data.target), f"one of {sorted(TARGETS)}")
    device = _device(config.device)
    drift = build(config.drift)
    network: nn.Module = build(config.generator).to(device)
    optimizer = build(config.optimizer, network.parameters())
    target, count = config.data.target, config.evaluate_samples
    folder = Path(config.output)
    _check_folder(config, folder)

    # Evaluation has its own generator, so that how often one looks changes nothing.
    watch = torch.Generator(device).manual_seed(config.seed + 1)
    real, again = (sample_target(target, count, watch) for _ in range(2))
    floor = metrics.wasserstein_squared(real, again)

    def draw(model: nn.Module) -> Tensor:
        return sample(model, count, torch.Generator(device).manual_seed(config.seed + 2))

    trainer = Trainer(
        network,
        target_batches(network, target, config.data.batch),
        drift,
        optimizer,
        torch.Generator(device).manual_seed(config.seed),
        loss_options={"normalize": config.normalize},
        warm_start=config.warm_start,
        ema=config.ema,
        clip=config.clip,
        precision=config.precision,
        evaluate=lambda model: {"w2": metrics.wasserstein_squared(draw(model), real)},
        evaluate_every=config.evaluate_every,
        folder=folder,
        checkpoint_every=config.checkpoint_every,
        progress=config.progress,
    )
    with _claimed(folder):
        if not config.resume:
            with atomic_path(folder / "config.yaml") as draft:
                OmegaConf.save(config, draft)
        history = trainer.run(config.steps, resume=config.resume)
        samples = draw(trainer.average)
        result = {"steps": trainer.step, "w2": metrics.wasserstein_squared(samples, real)}
        result |= {"w2_floor": floor, "seconds": history[-1]["seconds"]}
        modes = target_modes(target)
        if modes is not None:
            radius = TARGETS[target].mode_radius
            coverage = metrics.mode_coverage(samples.cpu(), modes, radius)
            result |= {"modes": len(modes), "covered": coverage.covered, "stray": coverage.stray}
        _draw(folder, history, floor, samples, real)
        with atomic_path(folder / "samples.npz") as draft:
            np.savez(draft, generated=samples.cpu().numpy(), real=real.cpu().numpy())
        write_json(folder / "result.json", result)
    return result


def _draw(
    folder: Path, history: list[dict[str, float]], floor: float, samples: Tensor, real: Tensor
) -> None:
    looked = [row for row in history if "w2" in row]
    title = "$W_2^2$ to the target falls towards what real samples score"
    curve = {"generator": ([row["step"] for row in looked], [row["w2"] for row in looked])}
    figure = plots.plot_curves(curve, title=title, ylabel="$W_2^2$ [length$^2$]", floor=floor)
    plots.save_figure(figure, folder / "curves.png")
    figure = plots.plot_samples(
        {"generated": samples}, real, title="Generated points should cover the data"
    )
    plots.save_figure(figure, folder / "samples.png")


def multirun(overrides: Sequence[str]) -> dict[str, dict[str, float]]:
    """Trains once for every combination of the values that overrides list, one after the other.

    Combinations that are done are not done again, and one that was cut off goes on.

    Args:
        overrides: Hydra overrides, such as ``"drift.tau=0.05,0.1"``.

    Returns:
        The result of each run, by the name of its folder inside ``output``.

    Raises:
        ArgumentError: An override is wrong, or none lists several values.
    """
    swept, fixed = _sweeps(overrides)
    if not swept:
        raise OptionError("-m", repr(" ".join(overrides)), "a list of values, such as seed=0,1,2")
    configs = {}
    for values in itertools.product(*swept):
        # All are composed before the first is trained: a typing error costs no run.
        config = compose("train", [*fixed, *values])
        name = ",".join(values).replace("/", "_")
        config.output = str(Path(config.output) / name)
        config.resume = (Path(config.output) / "checkpoint.pt").exists()
        configs[name] = config
    results = {}
    for count, (name, config) in enumerate(configs.items(), 1):
        done = Path(config.output) / "result.json"
        if done.exists():
            _refuse_change(config, done.with_name("config.yaml"))
            results[name] = json.loads(done.read_text())
        if name not in results or results[name]["steps"] < config.steps:
            print(f"{count} of {len(configs)}: {name}", file=sys.stderr)
            results[name] = train(config)
    return results


def _sweeps(overrides: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Overrides that list values, one list each, and the others."""
    try:
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException
    except ImportError as error:
        raise MissingDependencyError("hydra-core", "the command line", "cli") from error
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise OptionError("config", repr(" ".join(overrides)), f"a fix: {reason}") from error
    swept = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        for one in parsed
        if one.is_sweep_override()
    ]
    fixed = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    return swept, fixed
