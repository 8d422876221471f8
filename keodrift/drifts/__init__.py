"""Recipes: one frozen dataclass a method, ``fit(x, y) → Field``, ``drift(x, y) → V``."""

from keodrift.drifts.base import Drift
from keodrift.drifts.by_class import ClassField
from keodrift.drifts.critic import CriticDrift
from keodrift.drifts.rkhs import ChiSquareDrift, KALEDrift
from keodrift.drifts.sinkhorn import SinkhornDrift
from keodrift.drifts.softmax import OneSidedDrift, SoftmaxDrift, TwoSidedDrift
from keodrift.drifts.witness import WitnessDrift

__all__ = [
    "ChiSquareDrift",
    "ClassField",
    "CriticDrift",
    "Drift",
    "KALEDrift",
    "OneSidedDrift",
    "SinkhornDrift",
    "SoftmaxDrift",
    "TwoSidedDrift",
    "WitnessDrift",
]
