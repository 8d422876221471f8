"""The sliced Wasserstein drift: optimal transport of one-dimensional projections."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from keodrift.checks import check_positive, check_queries
from keodrift.drifts.base import Drift
from keodrift.drifts.clouds import Clouds
from keodrift.drifts.draws import check_generator, normals
from keodrift.errors import OptionError
from keodrift.fields import Field, saturated
from keodrift.transport import monotone_shift

TOGETHER = 1 << 16  # points, padding included, up to which classes are one batch


@dataclass(frozen=True, eq=False)
class SlicedField(Field):
    """The mean over directions θ of (T_θ(θ·z) − θ·z)θ, T_θ between the projected clouds.

    Attributes:
        clouds: What was fitted.
        directions: Unit vectors θ, float64 ``(L, d)``.
        chunk: How many projections of all points are held at a time.
    """

    clouds: Clouds
    directions: Tensor
    chunk: int

    @property
    def particles(self) -> Tensor:  # type: ignore[override]
        """The particles it was fitted on, ``(…, N, d)``."""
        return self.clouds.x

    def __call__(self, z: Tensor | None = None) -> Tensor:
        """The drift at ``z (…, K, d)``, or at the particles.

        Args:
            z: Any points, with the batch axes of the particles. Between the projected model points
                the maps are linear, beyond them translations; the result is differentiable in z.

        Raises:
            ArgumentError: ``z`` is not a finite floating-point cloud of the field's dimension,
                batch axes and device.
        """
        clouds = self.clouds
        at = clouds.x if z is None else check_queries("z", z, clouds.x)
        total = torch.zeros_like(at, dtype=torch.float64)
        # Copies, because tensors made in inference mode cannot enter a graph.
        model, data, of_model, of_data, directions = (
            tensor.clone() if at.requires_grad else tensor
            for tensor in (clouds.z, clouds.y, clouds.c, clouds.b, self.directions)
        )
        # About the model's mean, so that projections round by the size of the clouds.
        origin = (of_model[..., None] * model).sum(-2, keepdim=True)
        about = [points.double() - origin for points in (at, model, data)]
        size = about[1].norm(dim=-1).masked_fill(of_model == 0, 0).amax(-1, keepdim=True)
        for some in directions.split(self.chunk):
            lines = [(points @ some.T).mT.contiguous() for points in about]
            c, b = (
                weights.unsqueeze(-2).expand(line.shape)
                for weights, line in ((of_model, lines[1]), (of_data, lines[2]))
            )
            moved = monotone_shift(lines[0], lines[1], c, lines[2], b, size[..., None])
            total = total + moved.mT @ some
        return saturated(total / len(self.directions), clouds.dtype if z is None else z.dtype)


@dataclass(frozen=True)
class SlicedWassersteinDrift(Drift):
    """The gradient flow of the sliced Wasserstein distance: every direction moves mass at once.

    V is the mean over directions, so a translation by t gives about t/d: in d dimensions a step of
    d closes what a step of 1 closes on a line. There is no temperature, and mass crosses gaps. It
    vanishes where q = p; extra negatives are part of the cloud whose projections are moved.

    Attributes:
        directions: How many θ.
        orthogonal: Draws them as orthonormal bases, which cover directions more evenly: d of them
            move a translation exactly.
        chunk: Projections held at a time, each as long as the clouds; memory grows with it.
        generator: Where θ are drawn: a seed (the same directions at every fit, 0 by default) or a
            `torch.Generator`, from which every fit draws others; in high dimension a training needs
            the latter, since fixed directions leave all others unseen.

    Raises:
        OptionError: A number is not a positive integer, or ``generator`` is neither a seed nor a
            `torch.Generator`.

    Source: Cozzi and Santambrogio (2025), "Long-time asymptotics of the sliced-Wasserstein flow";
    Bonneel et al. (2015), "Sliced and Radon Wasserstein barycenters of measures".

    Example:
        >>> import torch, keodrift as kd
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> v = kd.SlicedWassersteinDrift(directions=2, orthogonal=True)(x, x + 3)
        >>> torch.allclose(v, torch.full((50, 2), 1.5))
        True
    """

    directions: int = 64
    _: KW_ONLY
    orthogonal: bool = False
    chunk: int = 32
    generator: int | torch.Generator = 0

    def __post_init__(self) -> None:
        """Refuses nonsense when built."""
        check_positive("directions", self.directions, integer=True)
        check_positive("chunk", self.chunk, integer=True)
        check_generator(self.generator)
        if not isinstance(self.orthogonal, bool):
            raise OptionError("orthogonal", repr(self.orthogonal), "True or False")

    def _together(self, n: int, m: int, d: int, problems: int, device: str) -> bool:
        return problems * max(n, m) <= TOGETHER

    def _fit(self, clouds: Clouds, start: Field | None) -> SlicedField:
        d = clouds.x.shape[-1]
        if self.orthogonal:
            blocks = normals(self.generator, -(-self.directions // d), d, d, like=clouds.x)
            drawn = torch.linalg.qr(blocks).Q.mT.reshape(-1, d)[: self.directions]
        else:
            drawn = normals(self.generator, self.directions, d, like=clouds.x)
            drawn = drawn / drawn.norm(dim=-1, keepdim=True)
        return SlicedField(clouds, drawn, self.chunk)
