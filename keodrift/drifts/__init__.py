"""Recipes: one frozen dataclass a method, ``fit(x, y) → Field``, ``drift(x, y) → V``."""

from keodrift.drifts.base import CarriedDrift, Drift
from keodrift.drifts.by_class import ClassField
from keodrift.drifts.critic import CriticDrift
from keodrift.drifts.kl import KLDrift
from keodrift.drifts.mmd import MMDDrift
from keodrift.drifts.proxy import SinkhornProxyDrift
from keodrift.drifts.rkhs import ChiSquareDrift, KALEDrift
from keodrift.drifts.sinkhorn import SinkhornDrift
from keodrift.drifts.sliced import SlicedWassersteinDrift
from keodrift.drifts.softmax import OneSidedDrift, SoftmaxDrift, TwoSidedDrift
from keodrift.drifts.witness import WitnessDrift

__all__ = [
    "CarriedDrift",
    "ChiSquareDrift",
    "ClassField",
    "CriticDrift",
    "Drift",
    "KALEDrift",
    "KLDrift",
    "MMDDrift",
    "OneSidedDrift",
    "SinkhornDrift",
    "SinkhornProxyDrift",
    "SlicedWassersteinDrift",
    "SoftmaxDrift",
    "TwoSidedDrift",
    "WitnessDrift",
]
