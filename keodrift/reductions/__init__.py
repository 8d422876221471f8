"""The only code that meets N×M pairs: two verbs, four engines, and the choice between them."""

from keodrift.reductions.distances import (
    all_costs,
    expected_cost,
    mean_cost,
    median_distance,
    nearest,
)
from keodrift.reductions.engine import (
    ENGINES,
    Cells,
    Choice,
    Dense,
    Keops,
    Tiled,
    check_backend,
    choose_backend,
    gibbs_kernel,
)
from keodrift.reductions.engines.keops.warmup import warmup
from keodrift.reductions.kernel import Engine, GibbsKernel

__all__ = [
    "ENGINES",
    "Cells",
    "Choice",
    "Dense",
    "Engine",
    "GibbsKernel",
    "Keops",
    "Tiled",
    "all_costs",
    "check_backend",
    "choose_backend",
    "expected_cost",
    "gibbs_kernel",
    "mean_cost",
    "median_distance",
    "nearest",
    "warmup",
]
