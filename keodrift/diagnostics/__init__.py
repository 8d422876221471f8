"""Why a drift does what it does: its slopes, what its flow dissipates, a report in words."""

from keodrift.diagnostics.crosscheck import Crosscheck, crosscheck
from keodrift.diagnostics.diagnosis import Diagnosis, Verdict, diagnose
from keodrift.diagnostics.dissipation import Dissipation, dissipation
from keodrift.diagnostics.shares import self_share
from keodrift.diagnostics.slopes import curl, expansion, jacobian

__all__ = [
    "Crosscheck",
    "Diagnosis",
    "Dissipation",
    "Verdict",
    "crosscheck",
    "curl",
    "diagnose",
    "dissipation",
    "expansion",
    "jacobian",
    "self_share",
]
