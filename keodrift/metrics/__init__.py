"""Measures of how close two clouds are; each is usable alone."""

from keodrift.metrics.clouds import subsample
from keodrift.metrics.distances import (
    class_wasserstein_squared,
    energy_distance,
    frechet_distance,
    median_distance,
    mmd_squared,
    wasserstein_squared,
)
from keodrift.metrics.modes import ModeCoverage, mode_coverage
from keodrift.metrics.spread import (
    class_nearest_neighbour_test,
    class_variance_ratio,
    nearest_neighbour_test,
    variance_ratio,
)

__all__ = [
    "ModeCoverage",
    "class_nearest_neighbour_test",
    "class_variance_ratio",
    "class_wasserstein_squared",
    "energy_distance",
    "frechet_distance",
    "median_distance",
    "mmd_squared",
    "mode_coverage",
    "nearest_neighbour_test",
    "subsample",
    "variance_ratio",
    "wasserstein_squared",
]
