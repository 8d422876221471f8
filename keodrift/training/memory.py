"""What drifts remember from step to step of a training: fields to start from, random states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from keodrift.drifts import CarriedDrift, ClassField, Drift
from keodrift.drifts.by_class import Part
from keodrift.fields import Field
from keodrift.training.state import Stateful


class Memory:
    """Fits drifts, each `CarriedDrift` from its field of the step before.

    Args:
        drifts: The drifts. Their `torch.Generator`s are part of what is remembered, and the states
            of those that are `Stateful`, such as modules.

    Example:
        >>> import keodrift as kd
        >>> drift, memory = kd.SlicedWassersteinDrift(1, generator=torch.Generator()), Memory([])
        >>> memory.state_dict(), list(Memory([drift]).state_dict())
        ({}, ['generators', 'fields'])
    """

    def __init__(self, drifts: Sequence[Callable[..., Tensor]]) -> None:
        own = [
            value for drift in drifts if isinstance(drift, Drift) for value in vars(drift).values()
        ]
        self.generators = [value for value in own if isinstance(value, torch.Generator)]
        self.drifts: list[Any] = [one for one in drifts if isinstance(one, Stateful)]
        self.carries = any(isinstance(drift, CarriedDrift) for drift in drifts)
        self._fields: dict[int, Field] = {}
        self._states: dict[int, dict[tuple[int, ...], Any]] = {}  # loaded, and not met again yet

    def fit(self, k: int, drift: Drift, x: Tensor, y: Tensor, **inputs: Any) -> Field:
        """The field of the k-th drift."""
        if not isinstance(drift, CarriedDrift):
            return drift.fit(x, y, **inputs)
        if k in self._states:
            self._fields[k] = _restored(drift, self._states.pop(k), x)
        self._fields[k] = drift.fit(x, y, **{"start": self._fields.get(k)} | inputs)
        return self._fields[k]

    def state_dict(self) -> dict[str, Any]:
        """All that is remembered; nothing where no drift has anything to remember."""
        if not (self.carries or self.generators or self.drifts):
            return {}
        fields = self._states | {k: _state(field) for k, field in self._fields.items()}
        own = [one.state_dict() for one in self.drifts]
        state = {"generators": [one.get_state() for one in self.generators], "fields": fields}
        return state | ({"drifts": own} if own else {})

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Remembers that again."""
        if not (self.carries or self.generators or self.drifts):
            raise ValueError("these drifts remember nothing")
        for one, state in zip(self.drifts, state_dict.get("drifts", []), strict=True):
            one.load_state_dict(state)
        for generator, state in zip(self.generators, state_dict["generators"], strict=True):
            generator.set_state(state)
        self._fields, self._states = {}, dict(state_dict["fields"])


def _state(field: Any) -> dict[tuple[int, ...], Any]:
    """The state of each part of a field by its classes: none, where there are no classes."""
    if isinstance(field, ClassField):
        return {
            part.classes: state for part in field.parts for state in _state(part.field).values()
        }
    return {(): field.state_dict()}


def _restored(drift: CarriedDrift, states: dict[tuple[int, ...], Any], x: Tensor) -> Field:
    """A field to start from."""
    fields = {classes: drift.restored(state, x) for classes, state in states.items()}
    if () in fields:
        return fields[()]
    nobody = torch.zeros(1, 0, dtype=torch.long)
    return ClassField(x, tuple(Part(k, nobody, nobody.bool(), one) for k, one in fields.items()))
