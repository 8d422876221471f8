"""What a training step lowers: the drift regression of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from torch import Tensor

from keodrift.checks import check_choice, check_cloud
from keodrift.drifts import Drift
from keodrift.errors import DivergedError, NonFiniteError, OptionError, ShapeError
from keodrift.fields import worst
from keodrift.loss import drift_loss
from keodrift.training.batches import Batch
from keodrift.training.memory import Memory
from keodrift.training.negatives import NEGATIVES, crossed, masked, refuse_masks


@dataclass(frozen=True)
class Objective:
    """The loss of samples and a batch: ½·mean ‖x − sg(x + V)‖².

    Attributes:
        drifts: A drift, or several (temperatures), whose fields are added; any ``(x, y) → V``.
        normalize: Divides each field by its root mean square; see `keodrift.drift_loss`.
        scale_features: Gives τ relative to the mean distance between samples and data.
        negatives: Who repels the samples. ``"self"``: they do, each also itself unless the drift
            masks it; every batch then pulls inward, small ones more. ``"masked"``: they do, none
            itself. ``"fresh"``: other draws of the network, as many as data, which the batch has
            inputs for (`Batch.model_inputs`); no pull on average once the model is the data.
            ``"crossed"``: each half of the samples repels the other, as unbiased, without another
            pass through the network, and noisier.

    It remembers from call to call (`Memory`) the critics of drifts that go on from each other, and
    the random states that drifts draw from; a `Trainer` keeps both in its checkpoints.

    Raises:
        OptionError: No drift was given, or an option is none of its values.

    Source: Deng et al., "Generative Modeling via Drifting", arXiv 2602.04770, the drifting loss.

    Example:
        >>> import torch, keodrift as kd
        >>> objective = Objective([kd.OneSidedDrift(tau) for tau in (0.5, 1.0)])
        >>> batch = Batch((), torch.ones(4, 2))
        >>> objective(torch.zeros(4, 2, requires_grad=True), batch).item()
        4.0
    """

    drifts: Callable[..., Tensor] | Sequence[Callable[..., Tensor]]
    _: KW_ONLY
    normalize: bool = False
    scale_features: bool = False
    negatives: str = "self"
    _memory: Memory = field(init=False, repr=False, compare=False)
    _reports: list[dict[str, float]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        drifts = tuple(self.drifts) if isinstance(self.drifts, Sequence) else (self.drifts,)
        if not drifts or not all(callable(drift) for drift in drifts):
            raise OptionError(
                "drifts", repr(self.drifts), "a drift or a non-empty sequence of them"
            )
        check_choice("negatives", self.negatives, NEGATIVES)
        if self.negatives == "masked":
            drifts = tuple(masked(drift) for drift in drifts)
        object.__setattr__(self, "drifts", drifts)
        object.__setattr__(self, "_memory", Memory(drifts))
        for name, value in (
            ("normalize", self.normalize),
            ("scale_features", self.scale_features),
        ):
            if not isinstance(value, bool):
                raise OptionError(name, repr(value), "True or False")

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """The loss of samples ``(N, d)`` with their graph, a scalar.

        Raises:
            DivergedError: The samples are not finite.
            ArgumentError: The batch is not what the drift or the negatives need.
        """
        check_samples(x)
        if x.dim() != 2:
            raise ShapeError("x", f"samples of shape {tuple(x.shape)}", "(N, d): flatten images")
        drawn = bool(batch.model_inputs) or "model" in batch.options
        self.check(fresh=drawn, balanced=batch.balanced)
        self._reports.clear()
        drifts: Any = self.drifts
        options = batch.options
        return drift_loss(
            x,
            batch.data,
            [self._watched(*drift) for drift in enumerate(drifts)],
            normalize=self.normalize,
            scale_features=self.scale_features,
            **(crossed(x, batch.data, options) if self.negatives == "crossed" else options),
        )

    def check(self, *, fresh: bool, balanced: bool) -> None:
        """Refuses batches that do not fit the negatives.

        Args:
            fresh: Whether they bring other draws of the network.
            balanced: Whether they cover noise and data evenly.

        Raises:
            OptionError: Fresh negatives are missing, or others come with draws, or a mask meets
                balanced batches.
        """
        if fresh != (self.negatives == "fresh"):
            got = f"{self.negatives!r} for a batch with{'' if fresh else 'out'} model_inputs"
            raise OptionError("negatives", got, "'fresh' for batches with them, and for no others")
        if balanced and self.negatives in ("self", "masked"):
            drifts: Any = self.drifts
            refuse_masks(drifts)

    def report(self) -> dict[str, float]:
        """What the fields of the last call report, the largest of each number."""
        return worst(self._reports)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered from call to call; nothing for most drifts."""
        return self._memory.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Remembers that again."""
        self._memory.load_state_dict(state_dict)

    def _watched(self, k: int, drift: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The drift, which leaves its report here; its field, which may be large, is not kept."""
        if not isinstance(drift, Drift):
            return drift

        def call(x: Tensor, y: Tensor, **inputs: Any) -> Tensor:
            fitted = self._memory.fit(k, drift, x, y, **inputs)
            self._reports.append(fitted.report())
            return fitted()

        return call


def check_samples(x: Tensor) -> None:
    """Samples of a network that no drift could move are the end of its training."""
    try:
        check_cloud("x", x)
    except NonFiniteError as error:
        raise DivergedError(f"samples hold {error.got}") from error
