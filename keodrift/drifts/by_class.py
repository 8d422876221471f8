"""Independent problems of different sizes in one call: one class a problem, by label.

Classes of like size are padded with points of weight 0 into batches, which the dense engine solves
together; classes too large for that run one after another, and leave no block of pairs behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keodrift.checks import check_labels, check_queries
from keodrift.drifts.clouds import Cloud, Clouds
from keodrift.errors import OptionError, ShapeError
from keodrift.fields import Field, worst

Fit = Callable[[Clouds, Field | None], Field]
# Whether problems of so many particles, other points and problems are better solved as one batch.
Together = Callable[[int, int, int], bool]


@dataclass(frozen=True, eq=False)
class Part:
    """Classes that were solved as one batch.

    Attributes:
        classes: Their labels, ``B`` of them.
        index: Particles of each, ``(B, K)``, padded.
        alive: Which of those are real, ``(B, K)``.
        field: The field, with one batch axis.
        drift: The drift at the particles, ``(B, K, d)``, where it was found already.
    """

    classes: tuple[int, ...]
    index: Tensor
    alive: Tensor
    field: Field
    drift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ClassField(Field):
    """One field a class.

    Attributes:
        particles: The particles it was fitted on, ``(N, d)``.
        parts: Those that were solved together in one part.

    Example:
        >>> import torch, keodrift as kd
        >>> x, y, labels = torch.zeros(2, 1), torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])
        >>> field = kd.OneSidedDrift(tau=1.0).fit(x, y, x_labels=labels, y_labels=labels)
        >>> field(torch.zeros(1, 1), torch.tensor([1])), field.classes
        (tensor([[3.]]), (0, 1))
    """

    particles: Tensor
    parts: tuple[Part, ...]

    def __call__(self, z: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """The drift at the particles, or at points of known classes.

        Args:
            z: Points ``(K, d)``; the result is differentiable in them. The particles by default.
            labels: Class of each, ``(K,)``.

        Raises:
            ArgumentError: ``z`` is not a cloud of the field's dimension, or ``labels`` are missing
                or name a class without a field.
        """
        if z is None:
            found = [
                (part.index, part.alive, part.field() if part.drift is None else part.drift)
                for part in self.parts
            ]
            return _scattered(self.particles, found)
        check_queries("z", z, self.particles)
        if labels is None:
            raise OptionError("labels", "None", "the class of each point of z")
        check_labels("labels", labels, z)
        unknown = set(labels.tolist()) - set(self.classes)
        if unknown:
            raise OptionError("labels", sorted(unknown), f"classes among {list(self.classes)}")
        found = []
        for part in self.parts:
            members = members_of(labels, part.classes)
            if any(map(len, members)):
                index, alive = padded(members)
                found.append((index, alive, part.field(z[index])))
        return _scattered(z, found)

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels of the classes, in ascending order."""
        return tuple(sorted(k for part in self.parts for k in part.classes))

    @property
    def couplings(self) -> tuple:  # type: ignore[override]
        """Couplings of all parts."""
        return tuple(c for part in self.parts for c in part.field.couplings)

    @property
    def marginal_error(self) -> Tensor | None:
        """Larger marginal error of each of `classes`, ``(classes,)``; None without any."""
        return self._by_class([part.field.marginal_error for part in self.parts])

    @property
    def converged(self) -> Tensor | None:
        """Whether each of `classes` reached its tolerance, ``(classes,)``; None without any."""
        return self._by_class([part.field.converged for part in self.parts])

    @property
    def reason(self) -> str:
        """Why the solvers ended, in words."""
        return "; ".join(dict.fromkeys(part.field.reason for part in self.parts))

    def report(self) -> dict[str, float]:
        """The largest of each number that its parts report."""
        return worst(part.field.report() for part in self.parts)

    def _by_class(self, values: list[Tensor | None]) -> Tensor | None:
        """Values of the parts, ``(B,)`` each, in the order of `classes`."""
        known = [value for value in values if value is not None]
        solved = [k for part in self.parts for k in part.classes]
        order = sorted(range(len(solved)), key=solved.__getitem__)
        return torch.cat(known)[order] if known else None


def fit_by_class(
    fit: Fit,
    together: Together,
    x: Cloud,
    y: Cloud,
    model: Cloud | None,
    negatives: Cloud | None,
    *,
    dtype: torch.dtype,
    start: Field | None,
) -> ClassField:
    """One field a class of the particles; what else has a class without particles is left out.

    Raises:
        ShapeError: Labels are missing for a cloud, a class of particles has no data or no model
            points, or negatives belong to a class without particles.
        OptionError: ``start`` was fitted without labels.
    """
    if start is not None and not isinstance(start, ClassField):
        raise OptionError("start", "a field without labels", "one fitted with labels")
    labels = _labels(x)
    classes = torch.unique(labels).tolist()
    if negatives is not None:
        if negatives.labels is None:
            copies = for_every_class(torch.unique(labels), negatives.points, negatives.weights)
            negatives = Cloud(negatives.name, *copies)
        _refuse_strangers(negatives, classes)
    clouds = {"x": x, "y": y, "model": model, "negatives": negatives}
    given = {name: cloud for name, cloud in clouds.items() if cloud is not None}
    members = {name: members_of(_labels(c), classes) for name, c in given.items()}
    for name in members.keys() - {"x", "negatives"}:
        empty = [k for k, own in zip(classes, members[name], strict=True) if len(own) == 0]
        if empty:
            what = {"y": "data", "model": "model points"}[name]
            needs = f"{what} for every class of x"
            raise ShapeError(f"{name}_labels", f"no {what} for the classes {empty}", needs)
    before = {} if start is None else {part.classes: part.field for part in start.parts}
    sizes = {name: [len(m) for m in own] for name, own in members.items()}
    batches, parts = _batches(sizes, together), []
    for batch in map(sorted, batches):  # so that a class keeps its place from step to step
        where = {name: padded([own[k] for k in batch]) for name, own in members.items()}
        pieces = {name: cloud.part(*where[name]) for name, cloud in given.items()}
        names = tuple(classes[k] for k in batch)
        field, drift = fit(Clouds.of(**pieces, dtype=dtype), before.get(names)), None
        if len(batches) > 1:  # all blocks of pairs at once would be memory without bound
            drift = field()
            field.release()
        parts.append(Part(names, *where["x"], field, drift))
    return ClassField(x.points, tuple(parts))


def _batches(sizes: dict[str, list[int]], together: Together) -> list[list[int]]:
    """Places of classes that are solved as one, from the small to the large."""
    n, drawn = sizes["x"], sizes.get("model", sizes["x"])
    repel = [k + u for k, u in zip(drawn, sizes.get("negatives", [0] * len(n)), strict=True)]
    m = list(map(max, sizes["y"], repel))
    batches: list[list[int]] = []
    width = (0, 0)
    for k in sorted(range(len(n)), key=lambda k: max(n[k], m[k])):
        wider = max(width[0], n[k]), max(width[1], m[k])
        if batches and together(*wider, len(batches[-1]) + 1):
            batches[-1].append(k)
            width = wider
        else:
            batches.append([k])
            width = n[k], m[k]
    return batches


def _refuse_strangers(negatives: Cloud, classes: list[int]) -> None:
    strangers = set(_labels(negatives).tolist()) - set(classes)
    if strangers:
        needs = "classes that particles have, or no labels: then all classes share the negatives"
        raise ShapeError("negative_labels", f"the classes {sorted(strangers)}", needs)


def for_every_class(classes: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """What all classes share ``(U, …)``, once for each class, and at the end whose each row is."""
    copies = (row.repeat(len(classes), *[1] * (row.dim() - 1)) for row in rows)
    return *copies, classes.repeat_interleave(len(rows[0]))


def _labels(cloud: Cloud) -> Tensor:
    if cloud.labels is None:
        raise ShapeError(f"{cloud.name}_labels", "None", "labels, as the others have")
    return cloud.labels


def members_of(labels: Tensor, classes: Sequence[int]) -> list[Tensor]:
    """Indices of the points of each class."""
    labels = labels.long()
    order = torch.argsort(labels, stable=True)
    ranked, known = labels[order], torch.tensor(list(classes), device=labels.device)
    ends = [torch.searchsorted(ranked, known, right=right) for right in (False, True)]
    # One look at the device for all classes.
    return [order[first:last] for first, last in torch.stack(ends, -1).tolist()]


def _scattered(like: Tensor, found: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Vectors ``(B, K, d)`` of padded members at their places among all points."""
    index = torch.cat([index[alive] for index, alive, _ in found])
    vectors = torch.cat([vectors[alive] for _, alive, vectors in found])
    out = torch.zeros(like.shape, dtype=vectors.dtype, device=like.device)
    return out.index_put((index,), vectors)


def padded(members: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Indices ``(B, K)`` with repeats for padding, and which of them are real."""
    width = max(1, max(len(m) for m in members))
    device = members[0].device
    index = torch.zeros(len(members), width, dtype=torch.long, device=device)
    alive = torch.zeros(len(members), width, dtype=torch.bool, device=device)
    for row, m in enumerate(members):
        index[row, : len(m)] = m
        alive[row, : len(m)] = True
        if len(m):
            index[row, len(m) :] = m[0]
    return index, alive
