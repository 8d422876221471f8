"""Figures: each function returns a matplotlib Figure that no global state knows about.

Every figure carries axes with units, a legend and, as its title, one line on how to read it.
`save_figure` writes it; notebooks show the returned object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keodrift.checks import check_positive
from keodrift.errors import OptionError, ShapeError
from keodrift.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA, MODEL, FLOOR, START = "#7f8c8d", "#c0392b", "#2c3e50", "#2980b9"


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """An off-screen figure and its axes ``(rows, columns)``; pyplot's state is left alone.

    Example:
        >>> figure, axes = new_figure(4, 3)
        >>> axes.shape
        (1, 1)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Writes a figure atomically; the suffix decides the format.

    Raises:
        OptionError: The path has no suffix of a format that is known.
        RunError: The system refused; what was there is kept.

    Example:
        >>> import tempfile
        >>> save_figure(new_figure(2, 2)[0], tempfile.mkdtemp() + "/empty.png").name
        'empty.png'
    """
    known = figure.canvas.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".").lower() not in known:
        needs = f"a suffix that says the format: {', '.join(sorted(known))}"
        raise OptionError("path", repr(str(path)), needs)
    with atomic_path(path) as draft:
        figure.savefig(draft, dpi=dpi)
    return Path(path)


def _planar(points: Tensor, name: str) -> Any:
    if points.shape[-1] != 2:
        raise ShapeError(name, tuple(points.shape), "points in the plane, a shape (…, 2)")
    return points.detach().cpu().numpy()


def _plane(axes: Axes, limit: float | None = None) -> None:
    axes.set_aspect("equal")
    axes.set_xlabel("$x_1$ [length]")
    axes.set_ylabel("$x_2$ [length]")
    if limit is not None:
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-limit, limit)


def _panels(
    argument: str, clouds: Mapping[str, Tensor], columns: int | None, size: float
) -> tuple[Figure, Any]:
    """A figure of one square panel a cloud, ``columns`` a row; those left over are empty."""
    count = len(clouds)
    if not count:
        raise OptionError(argument, "none", "at least one cloud")
    columns = count if columns is None else columns
    check_positive("columns", columns, integer=True)
    rows = -(-count // columns)
    figure, grid = new_figure(size * columns, (size + 0.4) * rows, rows, columns)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return figure, grid.flat


def plot_samples(
    samples: Mapping[str, Tensor],
    target: Tensor | Sequence[Tensor],
    *,
    title: str,
    limit: float | None = None,
    columns: int | None = None,
    size: float = 4.4,
) -> Figure:
    """Clouds of samples, one panel each, over points of the target.

    Args:
        samples: Name of each panel and its cloud ``(N, 2)``.
        target: ``(M, 2)``, or one such cloud a panel.
        title: How to read the figure, in a line.
        limit: The axes run over ±limit; fitted if None.
        columns: Panels a row; all in one by default.
        size: Of a panel, in inches.

    Raises:
        OptionError: There is no cloud, or ``columns`` is not a positive integer.
        ShapeError: A cloud is not in the plane.

    Example:
        >>> figure = plot_samples({"model": torch.randn(9, 2)}, torch.randn(9, 2), title="Overlap")
    """
    figure, grid = _panels("samples", samples, columns, size)
    targets = [target] * len(samples) if isinstance(target, Tensor) else target
    if len(targets) != len(samples):
        raise ShapeError("target", f"{len(targets)} clouds", f"one, or {len(samples)}, one a panel")
    for axes, (name, cloud), data in zip(grid, samples.items(), targets, strict=False):
        points, real = _planar(cloud, "samples"), _planar(data, "target")
        axes.scatter(*real.T, s=4, color=DATA, alpha=0.5, lw=0, label="data")
        axes.scatter(*points.T, s=4, color=MODEL, alpha=0.6, lw=0, label="samples")
        _plane(axes, limit)
        axes.set_title(f"{name} ({len(points)})", fontsize=8)
    # Outside the panels, where it hides no points.
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, markerscale=3, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_flows(
    trajectories: Mapping[str, Tensor],
    target: Tensor,
    *,
    title: str,
    columns: int | None = None,
    limit: float = 3.0,
    size: float = 2.6,
) -> Figure:
    """Paths of particles, one panel a flow, with where they start and end.

    Args:
        trajectories: Name of each panel and its positions ``(T, N, 2)``.
        target: ``(M, 2)``.
        title: How to read the figure, in a line.
        columns: Panels a row; all in one by default.
        limit: The axes run over ±limit.
        size: Of a panel, in inches.

    Raises:
        OptionError: There is no cloud, or ``columns`` is not a positive integer.
        ShapeError: A cloud is not in the plane.

    Example:
        >>> path = torch.randn(4, 9, 2).cumsum(0)
        >>> figure = plot_flows({"walk": path}, torch.randn(9, 2), title="Nowhere")
    """
    figure, grid = _panels("trajectories", trajectories, columns, size)
    real = _planar(target, "target")
    for axes, (name, trajectory) in zip(grid, trajectories.items(), strict=False):
        paths = _planar(trajectory, "trajectories")
        for path in paths.swapaxes(0, 1):
            axes.plot(*path.T, color=FLOOR, lw=0.3, alpha=0.5)
        axes.scatter(*real.T, s=7, color=DATA, lw=0, label="data")
        axes.scatter(*paths[0].T, s=5, color=START, lw=0, label="start")
        axes.scatter(*paths[-1].T, s=5, color=MODEL, lw=0, label="end")
        _plane(axes, limit)
        axes.set_title(name, fontsize=7)
    grid[0].legend(loc="upper right", fontsize=6)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    xlabel: str = "training step",
    ylabel: str,
    floor: float | None = None,
    floor_name: str = "real against real",
    logy: bool = True,
) -> Figure:
    """Curves, on a logarithmic vertical axis by default, with the floor of the metric.

    Args:
        curves: Name of each curve and its ``(x, y)`` values.
        title: How to read the figure, in a line.
        xlabel: Horizontal axis with its unit.
        ylabel: Vertical axis with its unit.
        floor: The value to compare with, such as what real samples score against real ones;
            drawn as a dashed line.
        floor_name: What the legend calls it.
        logy: Logarithmic vertical axis.

    Example:
        >>> curves = {"w2_squared": ([1, 2], [0.3, 0.1])}
        >>> figure = plot_curves(curves, title="Falls", ylabel="W2", floor=0.05)
    """
    figure, grid = new_figure(6, 4)
    axes = grid[0, 0]
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, lw=1.4, label=name)
    if floor is not None:
        axes.axhline(floor, color=FLOOR, ls="--", lw=1, label=f"{floor_name}: {floor:.3g}")
    if logy:
        axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3, which="both", lw=0.4)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    return figure


def plot_image_rows(
    rows: Sequence[tuple[str, Tensor]], *, title: str, split: int | None = None
) -> Figure:
    """Small images in rows, each row under its own name.

    Args:
        rows: Name of each row and its images in [0, 1]: ``(n, h, w)``, drawn black on white, or in
            colour, ``(n, 3, h, w)``.
        title: How to read the figure, in a line.
        split: Draw a line after this many columns, between what is generated and what is real.

    Raises:
        ShapeError: Rows have different numbers of images.

    Example:
        >>> figure = plot_image_rows([("3", torch.rand(5, 8, 8))], title="Threes")
    """
    stacks = [images.detach().cpu() for _, images in rows]
    shapes = [tuple(images.shape) for images in stacks]
    coloured = shapes[0][1:-2] == (3,)
    if len(set(shapes)) != 1 or len(shapes[0]) != 3 + coloured:
        raise ShapeError("rows", shapes, "equal shapes (n, h, w), or (n, 3, h, w)")
    count, (height, width) = shapes[0][0], shapes[0][-2:]
    inked = [images.float() if coloured else 1 - images.float() for images in stacks]
    # One bitmap with one white pixel between the images.
    padded = [torch.nn.functional.pad(images, (0, 1, 0, 1), value=1.0) for images in inked]
    sheet = torch.cat([torch.cat(list(images), dim=-1) for images in padded], dim=-2)
    figure, grid = new_figure(0.42 * count + 1, 0.42 * len(rows) + 1)
    axes = grid[0, 0]
    bitmap = sheet.movedim(0, -1) if coloured else sheet
    axes.imshow(bitmap.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks(
        [height / 2 + (height + 1) * row for row in range(len(rows))], [name for name, _ in rows]
    )
    axes.set_ylabel("class")
    axes.set_xlabel("samples")
    if split is None:
        axes.set_xticks([])
    else:
        edge = split * (width + 1) - 1
        axes.axvline(edge, color=MODEL, lw=1.5)
        axes.set_xticks([edge / 2, (edge + sheet.shape[-1]) / 2], ["generated", "real"])
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10)
    return figure


def plot_field(
    velocity: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    title: str,
    limit: float = 3.0,
    arrows: int = 24,
    trajectory: Tensor | None = None,
) -> Figure:
    """A vector field on a grid, with the two clouds and, if given, particle paths.

    Arrows show direction, at equal length; their colour shows the speed.

    Args:
        velocity: A fitted field, ``(n, 2) -> (n, 2)``.
        x: Particles ``(N, 2)``.
        y: Data ``(M, 2)``.
        title: How to read the figure, in a line.
        limit: The grid covers [−limit, limit]².
        arrows: Arrows along each side.
        trajectory: Paths ``(T, N, 2)`` to draw as lines.

    Raises:
        OptionError: There is no cloud, or ``columns`` is not a positive integer.
        ShapeError: A cloud is not in the plane.

    Example:
        >>> figure = plot_field(lambda z: -z, torch.randn(9, 2), torch.zeros(1, 2), title="In")
    """
    points, real = _planar(x, "x"), _planar(y, "y")
    ticks = torch.linspace(-limit, limit, arrows, dtype=x.dtype, device=x.device)
    grid_points = torch.cartesian_prod(ticks, ticks)
    with torch.no_grad():
        arrow = velocity(grid_points)
    speed = arrow.norm(dim=-1)
    arrow = (arrow / speed.clamp_min(1e-12).unsqueeze(-1)).cpu().numpy()
    figure, grid = new_figure(5.6, 5)
    axes = grid[0, 0]
    quiver = axes.quiver(
        *grid_points.cpu().numpy().T, *arrow.T, speed.cpu().numpy(),
        cmap="viridis", scale=1.4 * arrows, width=0.004, alpha=0.8,
    )  # fmt: skip
    figure.colorbar(quiver, ax=axes, label="speed |V| [length]", shrink=0.8)
    if trajectory is not None:
        for path in _planar(trajectory, "trajectory").swapaxes(0, 1):
            axes.plot(*path.T, color=MODEL, lw=0.4, alpha=0.5)
    axes.scatter(*real.T, s=6, color=DATA, lw=0, label="data")
    axes.scatter(*points.T, s=6, color=MODEL, lw=0, label="particles")
    _plane(axes, limit)
    axes.set_title(title, fontsize=10)
    axes.legend(loc="upper right", fontsize=8)
    return figure


def animate_flows(
    path: str | Path,
    trajectories: Mapping[str, Tensor],
    times: Sequence[float],
    target: Tensor,
    *,
    title: str,
    limit: float = 3.0,
    frames_per_second: int = 15,
    dpi: int = 70,
    columns: int | None = None,
) -> Path:
    """Writes an animated GIF of particle clouds drifting side by side, atomically.

    Args:
        path: The file, ending in ``.gif``.
        trajectories: Name of each panel and its positions ``(T, N, 2)``.
        times: Time of each frame, ``(T,)``.
        target: ``(M, 2)``.
        title: How to read the animation, in a line.
        limit: The axes run over ±limit.
        frames_per_second: Speed of the animation.
        dpi: Resolution; the file grows with its square.
        columns: Panels a row; all in one by default.

    Returns:
        The path.

    Raises:
        OptionError: There is no cloud, or the path does not end in ``.gif``.
        ShapeError: A cloud is not in the plane, or a panel has another number of frames.

    Example:
        >>> import tempfile
        >>> path, still = tempfile.mkdtemp() + "/flow.gif", torch.zeros(2, 3, 2)
        >>> animate_flows(path, {"still": still}, [0, 1], torch.zeros(1, 2), title="Still").name
        'flow.gif'
    """
    if Path(path).suffix != ".gif":
        raise OptionError("path", repr(str(path)), "the suffix .gif")
    figure, grid = _panels("trajectories", trajectories, columns, 3.6)
    from matplotlib.animation import PillowWriter

    real = _planar(target, "target")
    moving = []
    for axes, (name, trajectory) in zip(grid, trajectories.items(), strict=False):
        points = _planar(trajectory, "trajectories")
        if points.ndim != 3 or len(points) != len(times):
            shape = tuple(trajectory.shape)
            raise ShapeError("trajectories", shape, f"a shape ({len(times)}, N, 2)")
        axes.scatter(*real.T, s=5, color=DATA, alpha=0.6, lw=0, label="data")
        cloud = axes.scatter(*points[0].T, s=5, color=MODEL, alpha=0.8, lw=0, label="particles")
        moving.append((axes, name, points, cloud))
        _plane(axes, limit)
        axes.label_outer()
    grid[0].legend(loc="upper right", fontsize=7, markerscale=2)
    figure.suptitle(title, fontsize=9)
    figure.canvas.draw()  # lays the panels out, once for all frames
    figure.set_layout_engine("none")
    writer = PillowWriter(fps=frames_per_second)
    with atomic_path(path) as draft, writer.saving(figure, str(draft), dpi):
        for frame, time in enumerate(times):
            for axes, name, points, cloud in moving:
                cloud.set_offsets(points[frame])
                axes.set_title(f"{name}, t = {float(time):.1f}", fontsize=9)
            writer.grab_frame()
    return Path(path)
