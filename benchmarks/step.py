"""The drift of one training step at a small batch, beside a dense matrix rescaled in place.

    python benchmarks/step.py
    python benchmarks/step.py batch=500 taus=[0.05] steps=200

A residual network (16 → 256, six blocks) learns a planar target with fresh data every step, batch
1024, kernel exp(−‖x−y‖²/τ). Along one training run every peer is given the same batches and asked
for the field of 20 Sinkhorn sweeps, or for one solved to tol = 1e-2, from a cold start or warm from
the last step. The peer writes the logits −C/τ once and subtracts a log-sum-exp over rows and
columns in place at every half-step, cross and self problem both; once with torch's own, whose
denormal exponentials are slow, and once with exponents that stop before them.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from common import begin, machine, markdown, normal_log_sum, synchronise

import keodrift as kd
from keodrift.data import sample_target
from keodrift.files import write_json
from keodrift.networks import ResidualMLP

SETTINGS = {
    "targets": ["eight_gaussians", "checkerboard"],
    "taus": [0.1, 0.01],
    "batch": 1024,
    "steps": 300,
    "warm_up": 100,  # steps before times count
    "device": "cpu",
    "output": "outputs/step",
}


DENSE = ("dense, rescaled in place, 20 sweeps", "dense, rescaled in place, no denormals, 20 sweeps")


def in_place(
    x: torch.Tensor, y: torch.Tensor, tau: float, sweeps: int, log_sum=torch.logsumexp
) -> torch.Tensor:
    """V by dense log-domain Sinkhorn that rescales the whole matrix at every half-step."""

    def barycentre(z: torch.Tensor) -> torch.Tensor:
        logits = torch.cdist(x, z).square_().div_(-tau)
        for _ in range(sweeps):
            logits -= log_sum(logits, 1, keepdim=True)
            logits -= log_sum(logits, 0, keepdim=True)
        logits -= log_sum(logits, 1, keepdim=True)
        return logits.clamp_(min=-80).exp_() @ z

    return barycentre(y) - barycentre(x)


class Timed:
    """Calls a function of two clouds and keeps the time of each call."""

    def __init__(self, function) -> None:
        self.function, self.seconds, self.half_steps = function, [], []

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        begun = time.perf_counter()
        v = self.function(x, y)
        synchronise(x.device.type)
        self.seconds.append(time.perf_counter() - begun)
        return v

    def milliseconds(self, skip: int) -> float:
        rest = sorted(self.seconds[skip:])
        return 1e3 * rest[len(rest) // 2]


class Warm(Timed):
    """A drift that begins each solve at the potential of the last one, its half-steps kept."""

    def __init__(self, drift: kd.SinkhornDrift) -> None:
        super().__init__(self.warm)
        self.drift, self.field = drift, None

    def warm(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.field = self.drift.fit(x, y, start=self.field)
        self.half_steps.append([coupling.half_steps for coupling in self.field.couplings])
        return self.field()


def measure(target: str, tau: float, options) -> list[dict]:
    device, sweeps = options.device, 20
    network = ResidualMLP().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4)
    draw = torch.Generator().manual_seed(0)

    def drift(**extra):
        return kd.SinkhornDrift(tau, cost="squared", **extra)

    peers = {
        DENSE[0]: Timed(lambda x, y: in_place(x, y, tau, sweeps)),
        DENSE[1]: Timed(lambda x, y: in_place(x, y, tau, sweeps, normal_log_sum)),
        "keodrift, 20 sweeps": Timed(drift(half_steps=2 * sweeps + 1)),
        "keodrift, tol 1e-2, cold": Timed(drift(tol=1e-2)),
        "keodrift, tol 1e-2, warm": Warm(drift(tol=1e-2)),
        "keodrift, tol 1e-3, warm": Warm(drift(tol=1e-3)),
    }
    fields, others = {}, []
    for step in range(options.steps):
        noise = torch.randn(options.batch, 16, generator=draw).to(device)
        y = sample_target(target, options.batch, draw).to(device)
        x = network(noise)
        # The peers rest while the run moves on; every tenth batch is measured by all.
        shown = step >= options.warm_up and step % 10 == 0
        for name, peer in peers.items():
            if "warm" in name or shown or step < 2:
                fields[name] = peer(x.detach(), y)
        begun = time.perf_counter()
        v = fields["keodrift, tol 1e-3, warm"]
        loss = (x - (x.detach() + v)).square().sum(-1).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronise(device)
        others.append(time.perf_counter() - begun)
    base = peers[DENSE[1]].milliseconds(2)
    rows = []
    for name, peer in peers.items():
        taken = peer.milliseconds(options.warm_up if "warm" in name else 2)
        row = {"target": target, "tau": tau, "peer": name, "ms": taken, "ratio": base / taken}
        if peer.half_steps:
            late = peer.half_steps[options.warm_up :]
            row["half_steps"] = [sum(c) / len(late) for c in zip(*late, strict=True)]
        rows.append(row)
    rows.append(
        {
            "target": target,
            "tau": tau,
            "peer": "network's backward pass and optimizer",
            "ms": 1e3 * sorted(others)[len(others) // 2],
            "ratio": None,
        }
    )
    return rows


def main(options) -> None:
    results = []
    for target in options.targets:
        for tau in options.taus:
            torch.manual_seed(0)
            rows = measure(target, tau, options)
            results += rows
            for row in rows:
                print(row, flush=True)
            report = {"machine": machine(options.device), "batch": options.batch, "rows": results}
            write_json(Path(options.output) / "step.json", report)
    print("\n" + table(report))


def table(report: dict) -> str:
    """Milliseconds of every peer, and how much faster than the better dense one."""
    rows = []
    for r in report["rows"]:
        half_steps = " + ".join(f"{h:.1f}" for h in r.get("half_steps", []))
        ratio = f"{r['ratio']:.1f}×" if r["ratio"] is not None else ""
        name = f"{r['target']}, τ = {r['tau']:g}, {r['peer']}"
        rows.append([name, f"{r['ms']:.1f}", ratio, half_steps])
    header = ["drift of one step", "ms", "faster by", "half-steps, data + model"]
    note = f"Batch {report['batch']}. Measured on {report['machine']}."
    return markdown(header, rows) + "\n\n" + note


if __name__ == "__main__":
    begin(main, SETTINGS)
