"""Each room imports only from the rooms above it, and pairs are met in one room alone."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import keodrift

PACKAGE = Path(keodrift.__file__).parent
ROWS = [
    ["errors", "precision"],
    ["files"],
    ["checks"],
    ["costs"],
    ["reductions"],
    ["transport"],
    ["fields"],
    ["drifts"],
    ["divergence", "loss", "flow", "temperature", "reach", "gaussians", "bandwidths"],
    ["metrics"],
    ["plots"],
    ["diagnostics"],
    ["sampling"],
    ["data", "networks"],
    ["exports"],
    ["vision"],
    ["training"],
    ["tasks"],
    ["settings"],
    ["configuration"],
    ["runs"],
    ["studies"],
    ["papers"],
    ["cli"],
    ["__init__"],
    ["__main__"],
]
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
# Rooms of one row that may import each other: none but these.
BESIDE: set[tuple[str, str]] = set()
MODULES = sorted(PACKAGE.rglob("*.py"))
# What meets every pair of two clouds, and who may call it outside the reductions, on few points.
PAIRS = {"cdist", "pdist", "pairs", "all_costs"}
MAY_MEET_PAIRS = {
    ("costs/cost.py", "pairs"),
    ("costs/trial.py", "pairs"),
    ("transport/newton.py", "all_costs"),
    ("transport/exact.py", "all_costs"),
    ("reach.py", "all_costs"),
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name lives"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "keodrift"}


def rooms(names: set[str]) -> set[str]:
    heads = ((*name.split(".")[1:], "__init__")[0] for name in names)
    return {head if head in ROW else "__init__" for head in heads}


def test_every_module_has_a_room():
    assert {room(path) for path in MODULES} == set(ROW)


def forbidden(path: Path, mine: str) -> set[str]:
    above = {other for other in ROW if ROW[other] < ROW[mine]}
    beside = {other for importer, other in BESIDE if importer == mine}
    return rooms(imports(path)) - above - beside - {mine}


def test_imports_point_to_rooms_above():
    assert {dotted(p): forbidden(p, room(p)) for p in MODULES if forbidden(p, room(p))} == {}


def test_no_two_modules_import_each_other_in_a_circle():
    """Circles inside one room, and between rooms of a row, are circles as well."""
    names = {dotted(path): path for path in MODULES}

    def target(name: str) -> str:
        return name if name in names else name.rpartition(".")[0]

    graph = {name: {target(other) for other in imports(path)} for name, path in names.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("def late():\n    from keodrift.drifts import Drift\n", {"drifts"}),
        ("import keodrift\n", {"__init__"}),
        ("from keodrift import loss\n", {"loss"}),
        ("from keodrift.files import write_json\n", set()),
    ],
)
def test_the_test_sees_imports_upward_and_beside(tmp_path, source, seen):
    module = tmp_path / "flow.py"
    module.write_text(source)
    assert forbidden(module, "checks") == seen  # a room above all of them but the files
    assert forbidden(module, "flow") == seen - {"drifts"}  # one below the drifts, beside the loss


def test_only_the_reductions_meet_pairs():
    met = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", None))
                if name in PAIRS and room(path) != "reductions":
                    met.add((str(path.relative_to(PACKAGE)), name))
    assert met == MAY_MEET_PAIRS


def test_only_the_reductions_know_keops():
    users = {
        room(path)
        for path in MODULES
        if any(word in path.read_text(encoding="utf-8") for word in ("pykeops", "keopscore"))
    }
    assert users == {"reductions"}


def test_only_the_reductions_read_a_frame():
    readers = {room(path) for path in MODULES if ".frame." in path.read_text(encoding="utf-8")}
    assert readers == {"reductions"}
