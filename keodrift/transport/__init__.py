"""Entropic couplings: a problem, a solver, its starts, and what comes out."""

from keodrift.transport.problem import EntropicProblem
from keodrift.transport.sinkhorn import Coupling, Sinkhorn
from keodrift.transport.starts import Again, Carried, coarse, cooled, zero

__all__ = [
    "Again",
    "Carried",
    "Coupling",
    "EntropicProblem",
    "Sinkhorn",
    "coarse",
    "cooled",
    "zero",
]
