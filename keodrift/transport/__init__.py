"""Entropic couplings: a problem, a solver, its starts, what comes out; and maps on a line."""

from keodrift.transport.clusters import Clusters
from keodrift.transport.monotone import monotone_shift
from keodrift.transport.problem import EntropicProblem
from keodrift.transport.sinkhorn import Coupling, Sinkhorn
from keodrift.transport.starts import Again, Carried, coarse, cooled, zero

__all__ = [
    "Again",
    "Carried",
    "Clusters",
    "Coupling",
    "EntropicProblem",
    "Sinkhorn",
    "coarse",
    "cooled",
    "monotone_shift",
    "zero",
]
