"""How much is worked on at a time, and from where on an engine pays, by type of device.

A CPU wants blocks that stay in its cache. A GPU wants blocks so large that starting a kernel, some
ten microseconds, is little beside reading them, and bounded, so that a million points fit: 2²⁴
numbers are 64 MB in float32. The CPU's sizes were measured (benchmarks/README.md), the GPU's follow
from such figures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sizes:
    """Numbers of pairs, unless said otherwise.

    Attributes:
        stored: Up to so many, storing them is faster than any start-up cost of streaming them.
        batch: Up to so many, a batch of problems small enough to be stored is stored.
        rows: Of a stored block, worked on at a time.
        tile: Of the tiled engine's tiles.
        graph: Of a block under autograd, recomputed in the backward pass, coordinates counted.
        held: Distances or costs held at a time.
        searched: Up to so many, a nearest cluster is searched among all of them.
        cells: From so many on, compressing them between cells is faster than visiting each. A GPU
            visits a thousand times as many in the time that the many small steps between cells
            take.
        cell_pairs: Pairs of cells, of which up to so many are compared at once.
        cell_tile: Logits between points and pairs of cells.
        moments: Numbers in the moments of pairs of cells.
        keops_dimension: Above this d, matrix products beat symbolic formulas; 0 where there are
            none.
    """

    stored: int
    batch: int
    rows: int
    tile: int
    graph: int
    held: int
    searched: int
    cells: int
    cell_pairs: int
    cell_tile: int
    moments: int
    keops_dimension: int


CPU = Sizes(
    stored=1 << 22,
    batch=1 << 24,
    rows=1 << 18,
    tile=1 << 19,
    graph=1 << 21,
    held=1 << 22,
    searched=1 << 22,
    cells=1 << 28,
    cell_pairs=1 << 22,
    cell_tile=1 << 20,
    moments=1 << 25,
    keops_dimension=16,
)
GPU = Sizes(
    stored=1 << 24,
    batch=1 << 26,
    rows=1 << 26,
    tile=1 << 24,
    graph=1 << 24,
    held=1 << 26,
    searched=1 << 34,
    cells=1 << 38,
    cell_pairs=1 << 24,
    cell_tile=1 << 24,
    moments=1 << 27,
    keops_dimension=64,
)
OTHER = replace(GPU, cells=1 << 62, keops_dimension=0)  # as a GPU that KeOps does not know
SIZES = {"cpu": CPU, "cuda": GPU}


def sizes(device: str) -> Sizes:
    """The sizes for a type of device, ``"cpu"``, ``"cuda"`` or another GPU's."""
    return SIZES.get(device, OTHER)
