"""Recipes: one frozen dataclass a method, ``fit(x, y) → Field``, ``drift(x, y) → V``."""

from keodrift.drifts.base import Drift
from keodrift.drifts.by_class import ClassField
from keodrift.drifts.rkhs import ChiSquareDrift, KALEDrift
from keodrift.drifts.sinkhorn import SinkhornDrift
from keodrift.drifts.softmax import OneSidedDrift, SoftmaxDrift, TwoSidedDrift

__all__ = [
    "ChiSquareDrift",
    "ClassField",
    "Drift",
    "KALEDrift",
    "OneSidedDrift",
    "SinkhornDrift",
    "SoftmaxDrift",
    "TwoSidedDrift",
]
