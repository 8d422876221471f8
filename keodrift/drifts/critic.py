"""Flows of f-divergences whose critic is a neural network, trained a few steps a fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from keodrift.checks import check_choice, check_positive
from keodrift.drifts.base import CarriedDrift
from keodrift.drifts.clouds import Clouds
from keodrift.drifts.draws import check_seed, seeded
from keodrift.drifts.witness import WitnessField
from keodrift.errors import DivergedError, OptionError
from keodrift.fields import Field
from keodrift.precision import full_precision

MODULE = "network(d) → a module from (K, d) to (K, 1)"
LOG2 = math.log(2)

# φ′(u) and φ*(φ′(u)) of D = E_p φ(q/p), at u = e^v where v is what the network says of log q/p.
# Whatever v is, E_q φ′ − E_p φ* is at most D; where v is right it is D and φ′ its first variation.
DUALS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "kl": (lambda v: v, torch.expm1),
    "reverse_kl": (lambda v: -torch.expm1(-v), lambda v: v),
    "jensen_shannon": (lambda v: (LOG2 - softplus(-v)) / 2, lambda v: (softplus(v) - LOG2) / 2),
}


def _perceptron(d: int, width: int = 64) -> nn.Module:
    sizes = [d, width, width, 1]
    layers: list[nn.Module] = []
    for enter, leave in itertools.pairwise(sizes):
        layers += [nn.Linear(enter, leave), nn.Softplus()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class _Witness:
    """φ′(v) of one network a problem, at points ``(…, K, d)``; it can be pickled."""

    networks: tuple[nn.Module, ...]
    divergence: str

    def __call__(self, z: Tensor) -> Tensor:
        flat = z.reshape(-1, *z.shape[-2:])
        ratios = [net(one)[..., 0] for net, one in zip(self.networks, flat, strict=True)]
        return DUALS[self.divergence][0](torch.stack(ratios)).reshape(z.shape[:-1])


@dataclass(frozen=True, eq=False)
class CriticField(WitnessField):
    """V = −∇ of a trained critic, with all that its training needs to go on.

    Attributes:
        networks: The critic of each problem, in the order of the flattened batch axes; its output
            ``(K, 1)`` is log q/p. Not changed by later fits, which train copies.
        optimizers: Their optimisers' states.
        bound: The dual objective at the last step, ``(…,)``: on these points it is a lower bound of
            the divergence that is best over all functions.
    """

    _: KW_ONLY
    networks: tuple[nn.Module, ...]
    optimizers: tuple[dict[str, Any], ...]
    bound: Tensor

    def report(self) -> dict[str, float]:
        """The largest dual objective, ``critic_bound``."""
        return {"critic_bound": float(self.bound.max())}

    def state_dict(self) -> dict[str, Any]:
        """What `CriticDrift.restored` makes a field to start from."""
        weights = [network.state_dict() for network in self.networks]
        return {"networks": weights, "optimizers": list(self.optimizers), "bound": self.bound}


@dataclass(frozen=True)
class CriticDrift(CarriedDrift):
    """The flow of an f-divergence by its Fenchel dual, with a neural critic: V = −∇ of its witness.

    The recipe holds no state: network and optimiser live in the field, and ``start=`` carries them
    to the next fit, which trains copies. Without a start the critic is a new one, decided by
    ``seed``, and has seen ``steps`` steps: far from enough, where ``steps`` is small.
    `keodrift.simulate` passes each field on to the next step, and so does an `Objective`, whose
    checkpoints hold it.

    Attributes:
        divergence: Of the model q and the data p. ``"kl"``: KL(q‖p), witness log q/p.
            ``"reverse_kl"``: KL(p‖q), witness 1 − p/q, which explodes where the model has left data
            out: take a penalty. ``"jensen_shannon"``: that of GANs, bounded, and slow where the
            clouds are apart.
        network: Makes the critic for a dimension, ``network(d)``: a module from ``(K, d)`` to
            ``(K, 1)`` that treats rows apart (no batch normalisation). Coordinates enter as they
            are: of order 1 is best. By default two hidden layers of 64, softplus.
        steps: Adam steps a fit, each over all points.
        lr: Their rate.
        penalty: What keeps the critic smooth. ``"gradient"``: half of ``weight`` times the mean
            of ‖∇v‖² over model and data. ``"spectral"``: every matrix of the network is scaled down
            to a spectral norm of at most 1 after each step, which makes v 1-Lipschitz in the
            default network. None, the default, keeps nothing: between clouds that do not touch
            log q/p has no bound, and training longer steepens it.
        weight: Of the gradient penalty.
        seed: Decides the first critic; the global random state stays as it was.

    Raises:
        OptionError: An option is none of its values; at a fit, the network is no such module.
        DivergedError: At a fit: the critic's objective is not finite.

    Source: Nowozin, Cseke and Tomioka (2016), "f-GAN"; arXiv 2605.05118, section 4.2.

    Example:
        >>> import torch, keodrift as kd
        >>> x, y = torch.zeros(8, 2), torch.ones(8, 2)
        >>> drift = kd.CriticDrift("jensen_shannon", steps=20)
        >>> field = drift.fit(x, y)
        >>> better = drift.fit(x, y, start=field)
        >>> bool(better.bound > field.bound), bool((better() > 0).all())
        (True, True)
    """

    divergence: str = "kl"
    _: KW_ONLY
    network: Callable[[int], nn.Module] | None = None
    steps: int = 10
    lr: float = 2e-3
    penalty: str | None = None
    weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        check_choice("divergence", self.divergence, tuple(DUALS))
        check_positive("steps", self.steps, integer=True)
        check_positive("lr", self.lr)
        check_positive("weight", self.weight)
        check_seed("seed", self.seed)
        if self.penalty not in (None, "spectral", "gradient"):
            raise OptionError("penalty", repr(self.penalty), "None, 'spectral' or 'gradient'")
        if not (self.network is None or callable(self.network)):
            raise OptionError("network", type(self.network).__name__, MODULE)

    def _fit(self, clouds: Clouds, start: Field | None) -> CriticField:
        x, y = clouds.z, clouds.y
        batch, d = x.shape[:-2], x.shape[-1]
        networks, states, bounds = [], [], []
        with torch.inference_mode(False), torch.enable_grad(), full_precision(x.device.type):
            rows = (z.reshape(-1, *z.shape[-2:]).clone() for z in (x, y))
            weights = (
                w.reshape(-1, w.shape[-1]).to(x.dtype, copy=True) for w in (clouds.c, clouds.b)
            )
            problems = list(zip(*rows, *weights, strict=True))
            before: list[Any] = [None] * len(problems)
            if isinstance(start, CriticField) and len(start.networks) == len(problems):
                before = list(zip(start.networks, start.optimizers, strict=True))
            for problem, known in zip(problems, before, strict=True):
                network = self._new(d) if known is None else deepcopy(known[0])
                network = network.to(x.device, x.dtype)
                optimizer = torch.optim.Adam(network.parameters(), self.lr)
                if known is not None:
                    optimizer.load_state_dict(deepcopy(known[1]))
                    optimizer.param_groups[0]["lr"] = self.lr
                # Layers that draw, such as dropout, go on where the last fit ended.
                done = max((int(s["step"]) for s in optimizer.state.values()), default=0)
                with seeded(self.seed + done):
                    bounds.append(self._train(network, optimizer, *problem))
                networks.append(network.eval().requires_grad_(False))
                states.append(optimizer.state_dict())
        bound = torch.stack(bounds).reshape(batch)
        return self._of(clouds.x, clouds.dtype, networks, states, bound)

    def restored(self, state: dict[str, Any], x: Tensor) -> CriticField:
        """A field to start from, with the state of another, for particles like ``x (…, N, d)``."""
        networks, like = [], x.to(torch.promote_types(x.dtype, torch.float32))
        for weights in state["networks"]:
            networks.append(self._new(x.shape[-1]).to(like).eval().requires_grad_(False))
            networks[-1].load_state_dict(weights)
        return self._of(like.detach(), x.dtype, networks, state["optimizers"], state["bound"])

    def _of(
        self,
        x: Tensor,
        dtype: torch.dtype,
        networks: Sequence[nn.Module],
        states: Sequence[dict[str, Any]],
        bound: Tensor,
    ) -> CriticField:
        witness, optimizers = _Witness(tuple(networks), self.divergence), tuple(states)
        return CriticField(
            x, witness, dtype, networks=witness.networks, optimizers=optimizers, bound=bound
        )

    def _new(self, d: int) -> nn.Module:
        with seeded(self.seed):
            made: Any = _perceptron(d) if self.network is None else self.network(d)
        if not isinstance(made, nn.Module):
            raise OptionError("network", f"a function that returns {type(made).__name__}", MODULE)
        return deepcopy(made)  # it may be the same module every time

    def _train(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        b: Tensor,
    ) -> Tensor:
        """Some steps up the dual objective; its value at the last of them."""
        network.train().requires_grad_()
        # A point without weight may be anywhere; the dual there is infinite, and 0·∞ no number.
        (x, a), (y, b) = ((z[w > 0], w[w > 0]) for z, w in ((x, a), (y, b)))
        slope, conjugate = DUALS[self.divergence]
        points, weights = torch.cat([x, y]), torch.cat([a, b]) / 2
        points.requires_grad_(self.penalty == "gradient")
        for _ in range(self.steps):
            ratio = network(points)
            if ratio.shape != (len(points), 1):
                got = f"values of shape {tuple(ratio.shape)} for {len(points)} points"
                raise OptionError("network", got, MODULE)
            v, w = ratio[:, 0].split([len(x), len(y)])
            bound = (a * slope(v)).sum() - (b * conjugate(w)).sum()
            loss = -bound
            if self.penalty == "gradient":
                (steep,) = torch.autograd.grad(ratio.sum(), points, create_graph=True)
                loss = loss + self.weight / 2 * (weights * steep.square().sum(-1)).sum()
            if not bool(loss.isfinite()):
                raise DivergedError("the critic's objective is not finite")
            optimizer.zero_grad()
            loss.backward(inputs=list(network.parameters()))
            optimizer.step()
            if self.penalty == "spectral":
                with torch.no_grad():
                    for matrix in (p for p in network.parameters() if p.dim() > 1):
                        norm = torch.linalg.matrix_norm(matrix.flatten(1), 2)
                        matrix.div_(norm.clamp_min(1))
        return bound.detach()
