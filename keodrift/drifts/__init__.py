"""Recipes: one frozen dataclass a method, ``fit(x, y) → DriftField``, ``drift(x, y) → V``."""

from keodrift.drifts.base import Drift
from keodrift.drifts.gibbs import OneSidedDrift, TwoSidedDrift
from keodrift.drifts.sinkhorn import SinkhornDrift

__all__ = ["Drift", "OneSidedDrift", "SinkhornDrift", "TwoSidedDrift"]
