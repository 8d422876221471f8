"""keodrift: drift fields for one-step generative models, to a tolerance, in linear memory."""

from keodrift.bandwidths import silverman_bandwidth
from keodrift.costs import Cost
from keodrift.diagnostics import (
    Crosscheck,
    Diagnosis,
    crosscheck,
    curl,
    diagnose,
    dissipation,
    expansion,
    jacobian,
    self_share,
)
from keodrift.divergence import sinkhorn_divergence
from keodrift.drifts import (
    ChiSquareDrift,
    CriticDrift,
    Drift,
    KALEDrift,
    KLDrift,
    MMDDrift,
    OneSidedDrift,
    SinkhornDrift,
    SinkhornProxyDrift,
    SlicedWassersteinDrift,
    SoftmaxDrift,
    TwoSidedDrift,
    WitnessDrift,
)
from keodrift.errors import ArgumentError, BackendWarning, ConvergenceWarning
from keodrift.exports import load_network, save_network
from keodrift.fields import Field, SoftmaxField
from keodrift.flow import Flow, simulate
from keodrift.loss import drift_loss, guidance_weight
from keodrift.reach import reach_for_gaps
from keodrift.reductions import choose_backend, warmup
from keodrift.temperature import effective_neighbours, tau_for_neighbours

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "BackendWarning",
    "ChiSquareDrift",
    "ConvergenceWarning",
    "Cost",
    "CriticDrift",
    "Crosscheck",
    "Diagnosis",
    "Drift",
    "Field",
    "Flow",
    "KALEDrift",
    "KLDrift",
    "MMDDrift",
    "OneSidedDrift",
    "SinkhornDrift",
    "SinkhornProxyDrift",
    "SlicedWassersteinDrift",
    "SoftmaxDrift",
    "SoftmaxField",
    "TwoSidedDrift",
    "WitnessDrift",
    "choose_backend",
    "crosscheck",
    "curl",
    "diagnose",
    "dissipation",
    "drift_loss",
    "effective_neighbours",
    "expansion",
    "guidance_weight",
    "jacobian",
    "load_network",
    "reach_for_gaps",
    "save_network",
    "self_share",
    "silverman_bandwidth",
    "simulate",
    "sinkhorn_divergence",
    "tau_for_neighbours",
    "warmup",
]
