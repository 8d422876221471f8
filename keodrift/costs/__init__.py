"""Ground costs: one expression each, what is known of it, and how a user's is tried."""

from keodrift.costs.cost import Cost
from keodrift.costs.named import (
    COSTS,
    as_cost,
    cosine,
    euclidean,
    half_squared,
    mahalanobis,
    power,
    pseudo_huber,
    squared,
)
from keodrift.costs.trial import check_cost, check_temperature, recognised

__all__ = [
    "COSTS",
    "Cost",
    "as_cost",
    "check_cost",
    "check_temperature",
    "cosine",
    "euclidean",
    "half_squared",
    "mahalanobis",
    "power",
    "pseudo_huber",
    "recognised",
    "squared",
]
