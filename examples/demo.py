"""What keodrift does, in four parts and a few minutes: python examples/demo.py

scale   one converged drift between two clouds of 100 000 points, in linear memory
toy     a one-step network of eight Gaussians
digits  a class-conditional one-step network of real handwritten digits
flow    why converged matters: mass that must cross a gap, one-sided and Sinkhorn

    python examples/demo.py part=toy toy.drift.tau=0.05 quick=true

Figures and metrics.json land in outputs/.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import keodrift as kd
from keodrift import metrics, plots
from keodrift.data import get_target, load_digits_latents, sample_target
from keodrift.files import atomic_path, write_json
from keodrift.flow import simulate
from keodrift.networks import MLP, ConditionalMLP, sample
from keodrift.settings import run_script
from keodrift.tasks import latent_batches, target_batches
from keodrift.training import Objective, Trainer

SETTINGS = {
    "part": "all",  # scale, toy, digits, flow, or all of them
    "output": "outputs",
    "seed": 0,
    "progress": True,
    "scale": {  # one field between two clouds that no N×M matrix could hold
        "points": 100_000,
        "drift": {"tau": 0.3, "cost": "squared", "tol": 1e-3},
    },
    "toy": {
        "target": "eight_gaussians",
        "batch": 512,
        "steps": 500,
        "lr": 5e-3,
        "ema": 0.98,
        "samples": 1000,
        "evaluate_every": 50,
        "drift": {"tau": 0.1, "cost": "squared", "tol": 1e-2},
        "network": {"width": 256, "hidden": 3},
    },
    "digits": {
        "dim": 30,
        "per_class": 64,
        "steps": 500,
        "lr": 2e-3,
        "ema": 0.99,
        "samples_per_class": 135,  # as many as there are real training digits
        "drift": {"tau": 2.0, "cost": "half_squared", "tol": 1e-3},
    },
    "flow": {  # particles that start 90/10 on two modes and should end 50/50
        "particles": 200,
        "step_size": 0.2,
        "steps": 100,
        "tau": 0.1,
        "frames": 60,
    },
}
QUICK = {  # seconds: shows that everything runs, not how good it gets
    "scale": {"points": 2000},
    "toy": {"steps": 20, "batch": 128, "samples": 200, "evaluate_every": 10},
    "digits": {"steps": 10, "per_class": 16, "samples_per_class": 20},
    "flow": {"particles": 60, "steps": 12, "frames": 5},
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def peak_memory() -> int:
    """Largest memory this process has held so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)


def scale(cfg, out: Path) -> dict:
    n, settings = cfg.scale.points, cfg.scale
    generator = seeded(cfg.seed)
    x = torch.randn(n, 2, generator=generator)
    y = sample_target("eight_gaussians", n, generator)
    drift = kd.SinkhornDrift(**settings.drift)
    choice = kd.choose_backend(n, n, 2, cost=drift.cost)
    print(f"scale: N = M = {n}, engine {choice}")
    began = time.perf_counter()
    replace(drift, backend=choice.engine)(x[:50], y[:40])  # compiles its formulas on first use
    compiled = time.perf_counter() - began

    before, began = peak_memory(), time.perf_counter()
    field = drift.fit(x, y)
    velocity = field()
    seconds, memory = time.perf_counter() - began, peak_memory() - before
    dense = 4 * n * n
    print(
        f"scale: {seconds:.1f} s and {memory / 1e6:.0f} MB more than before; one dense float32 "
        f"matrix would be {dense / 1e9:.3g} GB"
    )
    return {
        "points": n,
        "engine": str(choice),
        "seconds": seconds,
        "preparation_seconds": compiled,
        "peak_memory_bytes": memory,
        "dense_matrix_bytes": dense,
        "marginal_error": float(field.marginal_error),
        "half_steps": field.half_steps,
        "converged": bool(field.converged),
        "rms_velocity": float(velocity.square().sum(-1).mean().sqrt()),
    }


def toy(cfg, out: Path) -> dict:
    settings = cfg.toy
    network = MLP(**settings.network, seed=cfg.seed)
    drift, target = kd.SinkhornDrift(**settings.drift), get_target(settings.target)
    count = settings.samples
    real, again = (target.sample(count, seeded(s)) for s in (101, 102))
    floor = metrics.wasserstein_squared(real, again)

    def draw(model: torch.nn.Module) -> torch.Tensor:
        return sample(model, count, seeded(103))

    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    trainer = Trainer(
        network,
        target_batches(network, target, settings.batch, balanced=True, negatives="fresh"),
        Objective(drift, negatives="fresh"),
        optimizer,
        seeded(cfg.seed),
        scheduler=decay(optimizer, settings.steps),
        ema=settings.ema,
        evaluate=lambda model: {"w2_squared": metrics.wasserstein_squared(draw(model), real)},
        evaluate_every=settings.evaluate_every,
        progress=cfg.progress,
    )
    history = trainer.run(settings.steps)

    samples = draw(trainer.average)
    coverage = metrics.mode_coverage(samples, target.modes, target.mode_radius)
    looked = [row for row in history if "w2_squared" in row]
    plots.save_figure(
        plots.plot_samples(
            {"generated": samples}, real, title="One network pass a sample: red should cover grey"
        ),
        out / "toy_samples.png",
    )
    plots.save_figure(
        plots.plot_curves(
            {"network": ([row["step"] for row in looked], [row["w2_squared"] for row in looked])},
            title="Distance to the target, and what real samples score",
            ylabel="$W_2^2$ [length$^2$]",
            floor=floor,
        ),
        out / "toy_curves.png",
    )
    plots.save_figure(
        plots.plot_field(
            drift.fit(samples, real), samples, real, title="What the drift still asks for"
        ),
        out / "toy_field.png",
    )
    result = {
        "w2_squared": metrics.wasserstein_squared(samples, real),
        "w2_squared_floor": floor,
        "modes": len(target.modes),
        "covered": coverage.covered,
        "masses": [round(mass, 4) for mass in coverage.masses.tolist()],
        "stray": coverage.stray,
        "steps": trainer.step,
        "seconds": history[-1]["seconds"],
    }
    print(
        f"toy: {coverage.covered} of {len(target.modes)} modes, {coverage.stray:.0%} of the "
        f"samples between them, W2^2 {result['w2_squared']:.4f} (real against real {floor:.4f}), "
        f"{result['seconds']:.0f} s"
    )
    return result


def digits(cfg, out: Path) -> dict:
    from sklearn.svm import SVC

    settings = cfg.digits
    latents = load_digits_latents(settings.dim)
    network = ConditionalMLP(settings.dim, settings.dim, latents.classes, seed=cfg.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    trainer = Trainer(
        network,
        latent_batches(network, latents, settings.per_class, balanced=True, negatives="fresh"),
        Objective(kd.SinkhornDrift(**settings.drift), negatives="fresh"),
        optimizer,
        seeded(cfg.seed),
        scheduler=decay(optimizer, settings.steps),
        ema=settings.ema,
        progress=cfg.progress,
    )
    history = trainer.run(settings.steps)

    each = settings.samples_per_class
    labels = torch.arange(latents.classes).repeat_interleave(each)
    generated = sample(trainer.average, len(labels), seeded(cfg.seed + 1), labels=labels)
    images = latents.decode(generated)

    # The judge learned from real digits only, and sees what the decoder makes of the latents.
    judge = SVC().fit(latents.decode(latents.train).flatten(1), latents.train_labels)
    accuracy = judge.score(images.flatten(1), labels)
    on_real = judge.score(latents.decode(latents.test).flatten(1), latents.test_labels)
    to_test = metrics.class_wasserstein_squared(
        generated, labels, latents.test, latents.test_labels
    )
    floor = metrics.class_wasserstein_squared(
        latents.train, latents.train_labels, latents.test, latents.test_labels
    )
    mean, mean_floor = (sum(d.values()) / len(d) for d in (to_test, floor))
    kept = metrics.class_variance_ratio(generated, labels, latents.train, latents.train_labels)
    variance = sum(kept.values()) / len(kept)

    shown = [
        torch.cat((images[labels == label][:10], latents.decode(latents.of_class(label)[:5])))
        for label in range(latents.classes)
    ]
    plots.save_figure(
        plots.plot_image_rows(
            list(zip(latents.class_names, shown, strict=True)),
            title="Generated digits, one pass each, beside real ones",
            split=10,
        ),
        out / "digits.png",
    )
    print(
        f"digits: a classifier of real digits reads {accuracy:.1%} of the generated ones right "
        f"({on_real:.1%} of real test digits); W2^2 a class {mean:.2f} (train against test "
        f"{mean_floor:.2f}), {variance:.2f} of the variance, {history[-1]['seconds']:.0f} s"
    )
    return {
        "variance_ratio": variance,
        "accuracy_generated": accuracy,
        "accuracy_real_test": on_real,
        "w2_squared": mean,
        "w2_squared_floor": mean_floor,
        "w2_squared_by_class": to_test,
        "w2_squared_floor_by_class": floor,
        "steps": settings.steps,
        "seconds": history[-1]["seconds"],
    }


def flow(cfg, out: Path) -> dict:
    settings = cfg.flow
    n, generator = settings.particles, seeded(cfg.seed)

    def two_modes(left: int) -> torch.Tensor:
        centre = torch.tensor([-2.0, 0.0]).repeat(n, 1)
        centre[left:] *= -1
        return centre + 0.1 * torch.randn(n, 2, generator=generator)

    start, target = two_modes(round(0.9 * n)), two_modes(n // 2)
    sinkhorn = partial(kd.SinkhornDrift, settings.tau, cost="squared")
    drifts = {
        "one-sided": kd.OneSidedDrift(settings.tau, cost="squared"),
        "20 sweeps": sinkhorn(half_steps=41),
        "100 sweeps": sinkhorn(half_steps=201),
        "converged": sinkhorn(tol=1e-3),
    }
    result, paths, lefts = {}, {}, {}
    print("flow: 90 % of the particles start left, half of the data lie there")
    print(f"{'drift':>12} {'left':>7} {'W2^2':>9} {'seconds':>8}")
    for name, drift in drifts.items():
        began = time.perf_counter()
        path = simulate(
            drift, start, target, settings.step_size, settings.steps, progress=cfg.progress
        )
        seconds = time.perf_counter() - began
        left = float((path.final[:, 0] < 0).float().mean())
        w2 = metrics.wasserstein_squared(path.final, target)
        print(f"{name:>12} {left:7.1%} {w2:9.4f} {seconds:8.1f}")
        result[name] = {"left": left, "w2_squared": w2, "seconds": seconds}
        paths[name] = path.trajectory
        lefts[name] = (path.trajectory[..., 0] < 0).float().mean(-1)

    # Most of the motion is early: frames at evenly spaced square roots of time.
    root = torch.linspace(0, settings.steps**0.5, settings.frames)
    frames = root.square().round().long().unique()
    plots.animate_flows(
        out / "flow.gif",
        {name: paths[name][frames] for name in ("one-sided", "converged")},
        [settings.step_size * frame for frame in frames.tolist()],
        target,
        title="90/10 start, 50/50 data: how much mass crosses the gap",
    )
    table = ["| drift | left mode | $W_2^2$ |", "|---|---|---|"]
    table += [
        f"| {name} | {row['left']:.0%} | {row['w2_squared']:.3g} |" for name, row in result.items()
    ]
    with atomic_path(out / "flow.md") as draft:
        draft.write_text("\n".join(table) + "\n")
    times = [settings.step_size * k for k in range(settings.steps + 1)]
    figure = plots.plot_curves(
        {name: (times, (100 * left).tolist()) for name, left in lefts.items()},
        title="90/10 start, 50/50 data: how much mass crosses the gap",
        xlabel="time t = step size × steps",
        ylabel="particles on the left mode [%]",
        floor=50,
        floor_name="data",
        logy=False,
    )
    plots.save_figure(figure, out / "flow.png")
    return result


PARTS = {"scale": scale, "toy": toy, "digits": digits, "flow": flow}
FIGURES = {
    "toy": "toy_samples.png, toy_curves.png, toy_field.png",
    "digits": "digits.png (generated beside real)",
    "flow": "flow.gif (particles drifting), flow.png (mass on the left mode over time), flow.md",
}


def main(cfg) -> None:
    out = Path(cfg.output)
    numbers = out / "metrics.json"
    # The scale part comes first: the peak memory of the process is then its own.
    for name in PARTS if cfg.part == "all" else [cfg.part]:
        result = PARTS[name](cfg, out)
        known = json.loads(numbers.read_text()) if numbers.exists() else {}
        write_json(numbers, known | {name: result})
    print(f"\nIn {out}/: metrics.json (every number above)")
    for name in FIGURES if cfg.part == "all" else [cfg.part]:
        if name in FIGURES:
            print(f"  {name}: {FIGURES[name]}")


if __name__ == "__main__":
    run_script(main, SETTINGS, quick=QUICK, choices={"part": ["all", *PARTS]})
