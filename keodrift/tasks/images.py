"""Images of latents: decoders and features by import path, what a classifier reads, figures."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from keodrift import plots
from keodrift.data import Latents
from keodrift.errors import ArgumentError, DtypeError, NonFiniteError, OptionError, ShapeError
from keodrift.networks import judging
from keodrift.vision import class_probabilities

Map = Callable[[Tensor], Tensor]
BATCH = 64  # latents decoded at once; bounds memory, not the result
SURE = 0.9  # probability from which a classifier is said to be sure


def imported(argument: str, path: str | Map) -> Map:
    """A function by its import path.

    Args:
        argument: What the path was given as, for errors.
        path: ``"package.module:function"`` or ``"package.module.function"``; a function is
            returned as it is.

    Raises:
        OptionError: There is no such module or function.

    Example:
        >>> imported("features", "torch.nn.functional:relu") is torch.nn.functional.relu
        True
    """
    if callable(path):
        return path
    module, _, name = str(path).replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # of a module, which may do anything when imported
        needs = f"package.module:function that can be imported ({error})"
        raise OptionError(argument, repr(path), needs) from error
    if not callable(found):
        raise OptionError(argument, repr(path), f"a function, not {type(found).__name__}")
    return found


def decoded_odds(latents: Tensor, decode: Map, classifier: nn.Module) -> Tensor:
    """How sure a classifier is of every class of decoded latents, in batches, without a graph.

    Args:
        latents: ``(n, d)``.
        decode: Latents ``(n, d)`` to images ``(n, H, W)``.
        classifier: Those to logits, ``(n, classes)``.

    Raises:
        OptionError: They do not fit.

    Example:
        >>> square = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
        >>> decoded_odds(torch.zeros(5, 4), lambda z: z.unflatten(1, (2, 2)), square)
        Traceback (most recent call last):
        ...
        keodrift.errors.OptionError: classifier: got Sequential on images (5, 2, 2), needs ...
    """

    def odds(images: Tensor) -> Tensor:
        try:
            with judging(classifier):
                return class_probabilities(classifier, images)
        except (RuntimeError, ValueError) as error:
            got = f"{type(classifier).__name__} on images {tuple(images.shape)}"
            reason = " ".join(str(error).split())
            raise OptionError("classifier", got, f"one that reads them ({reason})") from error

    return image_features(latents, decode, odds)


@torch.no_grad()
def image_features(latents: Tensor, decode: Map, features: Map) -> Tensor:
    """Features of decoded latents, in batches and without a graph.

    Args:
        latents: ``(n, d)``.
        decode: Latents ``(n, d)`` to images ``(n, …)``.
        features: Images to features ``(n, f)``.

    Raises:
        OptionError: A function fails.
        DtypeError: It gives something else than a floating-point tensor.
        NonFiniteError: It gives NaN or infinite values.
        ShapeError: It gives a tensor of another shape.

    Example:
        >>> image_features(torch.zeros(100, 4), lambda z: z.unflatten(1, (2, 2)), torch.flatten)
        Traceback (most recent call last):
        ...
        keodrift.errors.ShapeError: features: got a function from (64, 2, 2) to (256,), needs ...
    """
    parts = []
    for batch in latents.split(BATCH):
        images = decoded(batch, decode)
        # Functions may answer on a device of their own; what is compared lies with the latents.
        parts.append(_checked("features", images, features, "f").to(latents.device))
    return torch.cat(parts)


@torch.no_grad()
def decoded(latents: Tensor, decode: Map) -> Tensor:
    """The images of some latents, ``(n, …)``.

    Raises:
        OptionError: The function fails.
        DtypeError: It gives something else than a floating-point tensor.
        NonFiniteError: It gives NaN or infinite values.
        ShapeError: It does not give one image a latent.

    Example:
        >>> decoded(torch.zeros(3, 4), lambda z: z.unflatten(1, (2, 2))).shape
        torch.Size([3, 2, 2])
    """
    return _checked("decoder", latents, decode, "…")


def _checked(name: str, given: Tensor, function: Map, rest: str) -> Tensor:
    try:
        made: Any = function(given)
    except ArgumentError:
        raise
    except Exception as error:  # of a function of one's own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        got = f"a function that fails on {tuple(given.shape)} ({reason})"
        raise OptionError(name, got, "one that answers") from error
    if not isinstance(made, Tensor) or not made.is_floating_point():
        got = f"a function to {getattr(made, 'dtype', type(made).__name__)}"
        raise DtypeError(name, got, "one to a floating-point tensor")
    if not bool(made.isfinite().all()):
        raise NonFiniteError(name, "a function to NaN or infinite values", "one to finite ones")
    if made.dim() < 2 or len(made) != len(given) or (rest == "f" and made.dim() > 2):
        got = f"a function from {tuple(given.shape)} to {tuple(made.shape)}"
        raise ShapeError(name, got, f"one to ({len(given)}, {rest})")
    return made


def readings(odds: Tensor, real: Tensor, labels: Tensor) -> dict[str, float]:
    """What a classifier reads off samples, beside what it reads off real ones.

    Args:
        odds: Its probabilities of the samples, ``(n, k)``.
        real: Those of real ones, ``(m, k)``.
        labels: Classes that were asked for, ``(n,)``.

    Returns:
        ``sure``: the share of the samples of which one class has a probability of 0.9 or more.
        ``share_error``: how far the shares of the classes are from those of real ones, in total
        variation. ``accuracy``, where several classes were asked for: the share read as asked.

    Example:
        >>> odds = torch.tensor([[1.0, 0.0], [0.4, 0.6]])
        >>> readings(odds, odds[:1], torch.tensor([0, 0]))
        {'sure': 0.5, 'share_error': 0.5}
    """
    read, classes = odds.argmax(-1), odds.shape[-1]
    shares = [
        torch.bincount(found, minlength=classes).double() / len(found)
        for found in (read, real.argmax(-1))
    ]
    found = {
        "sure": float((odds.amax(-1) >= SURE).double().mean()),
        "share_error": float((shares[0] - shares[1]).abs().sum()) / 2,
    }
    if bool((labels != labels[0]).any()):
        found["accuracy"] = float((read == labels).double().mean())
    return found


@torch.no_grad()
def shown(
    latents: Latents, points: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor
) -> Any:
    """A figure of samples: images of every class beside real ones, or two directions.

    Args:
        latents: What they are samples of.
        points: Samples, ``(n, d)``.
        labels: Their classes, ``(n,)``.
        real: Real latents, ``(m, d)``.
        real_labels: Theirs, ``(m,)``.
    """
    count = 8
    shape = latents.image_shape or ()
    grey = len(shape) == 3 and shape[0] == 1
    if latents.decode is not None and (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
        rows = []
        for k, name in enumerate(latents.class_names):
            own, theirs = points[labels == k], real[real_labels == k]
            both = torch.cat([cloud[torch.arange(count) % len(cloud)] for cloud in (own, theirs)])
            images = decoded(both, latents.decode)
            rows.append((name, images[:, 0] if grey else images))
        title = "Generated images, one pass each, beside real ones"
        return plots.plot_image_rows(rows, title=title, split=count)
    if latents.dim == 1:
        axes = torch.tensor([[1.0, 0.0]], dtype=real.dtype)
    else:
        axes = torch.linalg.svd(real - real.mean(0), full_matrices=False).Vh[:2].mT
    title = "Generated latents should cover the real ones, in two leading directions"
    return plots.plot_samples({"generated": points @ axes}, real @ axes, title=title)
