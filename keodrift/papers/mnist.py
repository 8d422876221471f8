"""The paper's class-conditional digits (Tables 1 and 3): two kernels × temperatures × two fields.

Latents of an autoencoder that is trained here, so EMDs are in its own unit: beside them stand the
same over the variance of a class, and what real latents score.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from keodrift.configuration import compose, quoted
from keodrift.files import read_json, write_json
from keodrift.plots import new_figure, save_figure
from keodrift.runs import prepare, train
from keodrift.studies import Claims, Row, Study, grouped, markdown_table
from keodrift.training import checkpoints

# Their configs: Algorithm 2 with its mask, and 20 sweeps on either side.
FIELDS = {"baseline": "joint", "Sinkhorn": "sinkhorn_20"}
TAUS = (0.005, 0.01, 0.02, 0.025, 0.03, 0.04, 0.05, 0.1)
KERNELS = {"squared": "Gaussian", "euclidean": "Laplacian"}
# EMD and accuracy (%) that the paper reports, at each of its temperatures.
PAPER = {
    ("squared", "baseline"): (
        (73.21, 9.97), (73.21, 9.99), (73.21, 9.98), (73.21, 9.99),
        (73.22, 9.95), (77.19, 10.00), (79.73, 9.96), (5.63, 95.00),
    ),
    ("squared", "Sinkhorn"): (
        (8.57, 100), (7.71, 100), (7.12, 100), (7.01, 100),
        (6.96, 100), (6.91, 100), (6.88, 100), (6.91, 100),
    ),
    ("euclidean", "baseline"): (
        (73.21, 9.97), (73.21, 9.99), (77.10, 10.00), (12.25, 84.21),
        (5.70, 94.86), (4.71, 96.07), (4.46, 96.17), (4.18, 96.56),
    ),
    ("euclidean", "Sinkhorn"): (
        (5.40, 99.97), (7.14, 100), (6.67, 100), (6.55, 100),
        (6.48, 99.98), (6.38, 99.97), (6.34, 99.97), (6.61, 100),
    ),
}  # fmt: skip
CHANCE = 0.15  # accuracy up to which a network is said to draw one digit for all


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        cost: The ground cost.
        method: A key of `FIELDS`.
        tau: Temperature, relative to the mean cost of each class.
        seed: Of network and batches.
        overrides: What ``keodrift train`` is told.
    """

    cost: str
    method: str
    tau: float
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class MnistGrid(Study[Cell]):
    """The table as the runs behind it.

    Attributes:
        title: What it shows.
        data: Where MNIST is; see `load_mnist`. ``"digits"``: scikit-learn's 8×8 ones.
        taus: Temperatures, relative to the mean cost of each class.
        costs: Ground costs.
        seeds: One run each.
        steps: Training steps of a run.
        epochs: Of autoencoder and classifier; None for their defaults.
    """

    title: str = "MNIST in six latent dimensions"
    data: str | None = None
    taus: tuple[float, ...] = TAUS
    costs: tuple[str, ...] = tuple(KERNELS)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 5000
    epochs: tuple[int, int] | None = None

    def cells(self) -> dict[str, Cell]:
        """All runs, seed by seed, so that an unfinished table is one with fewer seeds."""
        cells = {}
        for seed in self.seeds:
            for cost in self.costs:
                for tau in self.taus:
                    for method, drift in FIELDS.items():
                        own = (f"drift={drift}", f"drift.cost={cost}", f"drift.tau={tau:g}")
                        overrides = ("experiment=mnist_paper", *own, *self._shared, f"seed={seed}")
                        name = f"{KERNELS[cost]}-{method}-tau{tau:g}-seed{seed}/result.json"
                        cells[name] = Cell(cost, method, tau, seed, overrides)
        return cells

    @property
    def _shared(self) -> tuple[str, ...]:
        """Steps and data of every run."""
        shared = [f"steps={self.steps}", f"evaluate_every={self.steps}"]
        if self.data == "digits":
            shared.append("data=encoded_digits")
        elif self.data is not None:
            shared.append(f"data.images.source={quoted(self.data)}")
        if self.epochs is not None:
            shared += [f"data.epochs={self.epochs[0]}", f"classifier.epochs={self.epochs[1]}"]
        return tuple(shared)

    def quick(self) -> MnistGrid:
        """The same in a minute, on the 8×8 digits: one temperature, one seed, few steps."""
        return replace(
            self, data="digits", taus=self.taus[-1:], seeds=(0,), steps=100, epochs=(3, 2)
        )

    @staticmethod
    def work(cell: Cell, path: Path) -> None:
        """Trains one network, from its checkpoint if there is one, and judges it."""
        config = compose("train", cell.overrides)
        config.output, config.progress = str(path.parent), False
        config.resume = bool(checkpoints(path.parent))
        task, trainer = prepare(config)
        if not config.resume:
            write_json(path.with_name("untrained.json"), task.evaluate(trainer.average))
        train(config, (task, trainer))

    def rows(self, folder: Path) -> list[Row]:
        """Means over seeds, for every kernel, temperature and field."""
        runs = [
            asdict(cell)
            | read_json(path)
            | {"w2_squared_untrained": read_json(path.with_name("untrained.json"))["w2_squared"]}
            for cell, path in self.finished(folder)
        ]
        names = ("w2_squared", "w2_relative", "variance_ratio", "nearest_neighbour", "accuracy")
        others = ("w2_squared_untrained", "seconds")
        rows = []
        for (cost, tau, method), mine in grouped(runs, "cost", "tau", "method").items():
            row: Row = {"cost": cost, "tau": tau, "method": method, "runs": len(mine)}
            for name in (*names, *(f"{name}_floor" for name in names), *others):
                row[name] = statistics.fmean(run[name] for run in mine)
            rows.append(row)
        return rows

    def table(self, rows: list[Row]) -> str:
        """One line a kernel, temperature and field, then real latents, then no training."""
        lines: list[tuple] = []
        for row in rows:
            found = PAPER.get((row["cost"], row["method"]), ())
            paper = dict(zip(TAUS, found, strict=False)).get(row["tau"])
            theirs = ("", "") if paper is None else (f"{paper[0]:.2f}", f"{paper[1]:.2f}")
            lines.append(
                (
                    KERNELS[row["cost"]],
                    f"{row['tau']:g}",
                    row["method"],
                    f"{row['w2_squared']:.2f}",
                    f"{row['w2_relative']:.3f}",
                    f"{row['accuracy']:.2%}",
                    f"{row['variance_ratio']:.2f}",
                    f"{row['nearest_neighbour']:.3f}",
                    *theirs,
                    row["runs"],
                )
            )
        if rows:
            names = ("w2_squared", "w2_relative", "accuracy", "variance_ratio", "nearest_neighbour")
            formats = (".2f", ".3f", ".2%", ".2f", ".3f")
            floor = [
                format(rows[0][f"{n}_floor"], how) for n, how in zip(names, formats, strict=True)
            ]
            lines.append(("", "", "real latents", *floor, "", "", ""))
            still = f"{statistics.fmean(row['w2_squared_untrained'] for row in rows):.2f}"
            few = compose("train", ["experiment=mnist_paper"]).evaluate_samples
            name = f"untrained network, {few} a class"
            lines.append(("", "", name, still, *[""] * 7))
        header = (
            "kernel|τ:|field|EMD:|EMD / variance:|accuracy:|variance ratio:|1-NN:|"
            "EMD (paper):|accuracy (paper), %:|runs:"
        )
        return markdown_table(header, lines)

    def claims(self, rows: list[Row]) -> Claims:
        """The paper's claims: Sinkhorn reads right at every τ, the baseline at chance when cold."""
        found = {(r["cost"], r["tau"], r["method"]): r["accuracy"] for r in rows}

        def seen(
            cost: str, method: str, taus: tuple[float, ...], low: float, high: float
        ) -> bool | None:
            values = [found.get((cost, tau, method)) for tau in taus]
            if None in values or not values:
                return None
            return all(low <= value <= high for value in values if value is not None)

        claims: Claims = {}
        for cost, coldest in (("squared", 0.05), ("euclidean", 0.02)):
            kernel, cold = KERNELS[cost], tuple(tau for tau in self.taus if tau <= coldest)
            claims[f"{kernel}: Sinkhorn ≥ 99.9 % accurate at every τ"] = seen(
                cost, "Sinkhorn", self.taus, 0.999, 1
            )
            claims[f"{kernel}: the baseline at chance up to τ = {coldest:g}"] = seen(
                cost, "baseline", cold, 0, CHANCE
            )
            claims[f"{kernel}: the baseline recovers at the largest τ"] = seen(
                cost, "baseline", self.taus[-1:], 0.9, 1
            )
        return claims

    def draw(self, rows: list[Row], folder: Path, stem: Path) -> None:
        """EMD and accuracy over τ as ``STEM.png``, samples as ``STEM_samples.png``."""
        if not rows:
            return
        self._draw_samples(folder, stem)
        figure, axes = new_figure(10, 7, 2, 2)
        for j, cost in enumerate(self.costs):
            for i, (name, word) in enumerate((("w2_squared", "EMD"), ("accuracy", "accuracy"))):
                panel = axes[i, j]
                for k, method in enumerate(FIELDS):
                    line = sorted(
                        (row["tau"], row[name])
                        for row in rows
                        if (row["cost"], row["method"]) == (cost, method)
                    )
                    if line:
                        panel.plot(*zip(*line, strict=True), "o-", color=f"C{k}", label=method)
                floor = rows[0][f"{name}_floor"]
                panel.axhline(floor, color="0.5", ls=":", label="real against real")
                panel.set(xscale="log", xlabel="τ / mean cost of the class", ylabel=word)
                if name == "w2_squared":
                    panel.set(yscale="log", title=f"{KERNELS[cost]} kernel")
        axes[0, 0].legend(fontsize="small")
        figure.suptitle(f"{self.title}: EMD lower, accuracy higher is better")
        save_figure(figure, stem.with_suffix(".png"))

    def _draw_samples(self, folder: Path, stem: Path) -> None:
        """Samples at the smallest and the largest τ of the first kernel and seed, as its Fig. 3."""
        ends = {min(self.taus), max(self.taus)}
        shown = [
            (f"{cell.method}, τ = {cell.tau:g}", path.with_name("samples.png"))
            for cell, path in self.finished(folder)
            if cell.seed == self.seeds[0]
            and cell.cost == self.costs[0]
            and cell.tau in ends
            and path.with_name("samples.png").exists()
        ]
        if not shown:
            return
        from matplotlib.image import imread  # imported here: it takes a second

        lines = -(-len(shown) // 2)
        figure, axes = new_figure(12, 4.2 * lines, lines, 2)
        for panel in axes.flat:
            panel.axis("off")
        for panel, (title, path) in zip(axes.flat, shown, strict=False):
            panel.imshow(imread(path))
            panel.set_title(title)
        save_figure(figure, stem.with_name(f"{stem.name}_samples.png"))
