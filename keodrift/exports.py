"""Networks that are kept: weights and what rebuilds them in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import safetensors
import torch
from safetensors.torch import save
from torch import nn

from keodrift.errors import ArgumentError, OptionError
from keodrift.files import atomic_path, reading
from keodrift.networks import MLP, ConditionalMLP, ResidualMLP

KNOWN: tuple[type[nn.Module], ...] = (MLP, ResidualMLP, ConditionalMLP)


@runtime_checkable
class Described(Protocol):
    """A network that says with which keyword arguments it was made."""

    settings: Mapping[str, Any]


def save_network(
    network: nn.Module, path: str | Path, *, about: Mapping[str, str] | None = None
) -> None:
    """Writes a network that `load_network` rebuilds, atomically.

    Args:
        network: One of `keodrift.networks`, or one of your own with an attribute ``settings``: the
            keyword arguments it was made with, as JSON can hold them. Compiled, it is kept as what
            was compiled.
        path: The file, by custom ``….safetensors``.
        about: What else the file should say.

    Raises:
        ArgumentError: The network has no ``settings``, or JSON cannot hold them.
        RunError: The system refused; what was there is kept.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "network.safetensors"
        >>> save_network(MLP(width=8), path)
        >>> load_network(path).settings["width"]
        8
    """
    network = getattr(network, "_orig_mod", network)  # what torch.compile has wrapped
    settings = described(network)
    metadata = {**(about or {}), "class": type(network).__qualname__, "settings": settings}
    # Copies: the format refuses weights that two names share.
    weights = {name: z.detach().clone().contiguous() for name, z in network.state_dict().items()}
    with atomic_path(path) as draft:
        draft.write_bytes(save(weights, metadata))


def described(network: nn.Module) -> str:
    """The settings of a network as JSON.

    Raises:
        ArgumentError: It has none, or JSON cannot hold them.
    """
    needs = "an attribute settings: the keyword arguments it was made with, as JSON holds them"
    if not isinstance(network, Described):
        raise ArgumentError("network", type(network).__name__, needs)
    try:
        return json.dumps(dict(network.settings))
    except TypeError as error:
        raise ArgumentError("network", f"settings with {error}", needs) from error


def load_network(
    path: str | Path,
    *,
    classes: Sequence[type[nn.Module]] = (),
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The network of a file, in evaluation mode: ready for `keodrift.networks.sample`.

    Args:
        path: A file of `save_network`, such as ``network.safetensors`` in a run folder.
        classes: Networks of your own that a file may hold beside those of `keodrift.networks`. The
            file names a class and never brings code.
        device: Where the network is to live.

    Raises:
        OptionError: The file holds a network of another class.
        ArgumentError: Its weights or settings are not those of that class.
        RunError: The file is damaged or none of `save_network`.

    Example:
        >>> load_network("none.safetensors")
        Traceback (most recent call last):
        ...
        keodrift.errors.RunError: cannot read none.safetensors (...): ...
    """
    with reading(path), safetensors.safe_open(str(path), "pt") as stored:
        metadata = stored.metadata()
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        name, settings = metadata["class"], json.loads(metadata["settings"])
    known = {one.__qualname__: one for one in (*KNOWN, *classes)}
    if name not in known:
        needs = f"one of {', '.join(known)}, or classes=[{name}]"
        raise OptionError("path", f"a {name} in {path}", needs)
    try:
        network = known[name](**settings)
        dtypes = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
        if len(dtypes) == 1:
            network.to(dtypes.pop())
        network.load_state_dict(weights)
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ArgumentError("path", f"{path}: {reason}", f"a {name} of this version") from error
    return network.to(device).eval()
