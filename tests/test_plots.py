"""Figures: they hold the data, say what they show, and leave no trace."""

from __future__ import annotations

import sys

import pytest
import torch

from keodrift import plots
from keodrift.errors import OptionError, ShapeError


def cloud(n: int = 12) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(n))


def assert_readable(figure):
    title = figure.get_suptitle() or figure.axes[0].get_title()
    assert title
    for axes in figure.axes[:1]:
        assert axes.get_xlabel() and axes.get_ylabel()


def test_samples_draw_both_clouds_with_a_legend():
    figure = plots.plot_samples({"a": cloud(5), "b": cloud(7)}, cloud(9), title="Overlap")
    assert_readable(figure)
    for axes, count in zip(figure.axes, (5, 7), strict=True):
        assert [len(c.get_offsets()) for c in axes.collections] == [9, count]
        assert axes.get_title().endswith(f"({count})")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["data", "samples"]


def test_curves_have_a_logarithmic_axis_and_the_floor():
    figure = plots.plot_curves(
        {"w2_squared": ([1, 2, 3], [1.0, 0.1, 0.01])},
        title="Falls",
        ylabel="W2 [length²]",
        floor=0.02,
    )
    assert_readable(figure)
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    assert axes.lines[1].get_ydata()[0] == 0.02
    assert "real against real" in axes.get_legend().get_texts()[1].get_text()
    plain = plots.plot_curves({"x": ([1], [1])}, title="t", ylabel="y", logy=False)
    assert plain.axes[0].get_yscale() == "linear"


def test_image_rows_are_black_on_white_and_named():
    images = torch.zeros(3, 8, 8)
    images[0, 2, 3] = 1
    figure = plots.plot_image_rows([("0", images), ("1", images)], title="Digits", split=2)
    assert_readable(figure)
    axes = figure.axes[0]
    sheet = axes.images[0].get_array()
    assert sheet.shape == (18, 27)
    assert sheet[2, 3] == 0 and sheet[11, 3] == 0 and sheet.sum() == 18 * 27 - 2
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "1"]
    with pytest.raises(ShapeError, match="rows"):
        plots.plot_image_rows([("0", images), ("1", images[:2])], title="x")


def test_field_draws_unit_arrows_coloured_by_speed():
    figure = plots.plot_field(
        lambda z: torch.tensor([3.0, 4.0]).expand_as(z), cloud(), cloud(), title="Constant",
        arrows=5, trajectory=torch.stack((cloud(), cloud())),
    )  # fmt: skip
    assert_readable(figure)
    quiver = figure.axes[0].collections[0]
    assert quiver.N == 25
    assert quiver.U[0] == pytest.approx(0.6) and quiver.V[0] == pytest.approx(0.8)
    assert quiver.get_array().tolist() == pytest.approx([5.0] * 25)
    assert len(figure.axes[0].lines) == 12


def test_only_the_plane_can_be_drawn():
    with pytest.raises(ShapeError, match="target"):
        plots.plot_samples({"a": cloud()}, torch.zeros(3, 3), title="x")
    with pytest.raises(ShapeError, match="^target: got 1 clouds"):
        plots.plot_samples({"a": cloud(), "b": cloud()}, [cloud()], title="x")


def test_save_is_atomic(tmp_path):
    path = plots.save_figure(plots.new_figure(2, 2)[0], tmp_path / "deep" / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OptionError, match=r"^path: got .*a\.nonsense', needs .*png"):
        plots.save_figure(plots.new_figure(2, 2)[0], tmp_path / "deep" / "a.nonsense")
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


def test_animation_has_one_frame_a_time(tmp_path):
    from PIL import Image

    trajectory = torch.stack([cloud() + k for k in range(4)])
    path = plots.animate_flows(
        tmp_path / "flow.gif", {"a": trajectory, "b": trajectory}, [0, 1, 2, 3], cloud(), title="x"
    )
    with Image.open(path) as image:
        assert image.n_frames == 4
    with pytest.raises(ShapeError, match="trajectories"):
        plots.animate_flows(tmp_path / "b.gif", {"a": trajectory}, [0, 1], cloud(), title="x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["flow.gif"]


def test_figures_of_nothing_are_refused(tmp_path):
    with pytest.raises(OptionError, match="^samples: got none"):
        plots.plot_samples({}, cloud(), title="x")
    with pytest.raises(OptionError, match="^columns: got 0"):
        plots.plot_samples({"a": cloud()}, cloud(), title="x", columns=0)
    with pytest.raises(OptionError, match="^trajectories: got none"):
        plots.animate_flows(tmp_path / "a.gif", {}, [0], cloud(), title="x")
    with pytest.raises(OptionError, match=r"^path: got .*needs the suffix \.gif"):
        plots.animate_flows(tmp_path / "a.png", {"a": cloud()[None]}, [0], cloud(), title="x")
    assert not list(tmp_path.iterdir())


def test_pyplot_is_left_alone():
    import matplotlib

    backend = matplotlib.rcParams._get("backend")
    plots.plot_samples({"a": cloud()}, cloud(), title="x")
    assert matplotlib.rcParams._get("backend") == backend
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_a_figure_without_a_format_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"^path: got .*figure', needs a suffix"):
        plots.save_figure(plots.new_figure(2, 2)[0], tmp_path / "figure")
    assert not list(tmp_path.iterdir())
