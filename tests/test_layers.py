"""Each room imports only from the rooms below it."""

from __future__ import annotations

import ast
from pathlib import Path

import keodrift

PACKAGE = Path(keodrift.__file__).parent
FLOORS = [
    {"errors", "files"},
    {"costs"},
    {"checks"},
    {"reductions"},
    {"anderson", "newton"},
    {"sinkhorn"},
    {"multilevel"},
    {"fields"},
    {"drifts"},
    {"divergence"},
    {"loss"},
    {"flow"},
    {"distributed"},
    {"metrics", "plots", "temperature", "gaussians"},
    {"data", "generators", "training"},
    {"runs", "settings"},
    {"studies"},
    {"papers"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms that a module imports, anywhere in it: top-level names of the package are its own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name lives"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            head, *rest = name.split(".")
            if head == "keodrift":
                found.add(rest[0] if rest and rest[0] in FLOOR else "__init__")
    return found


def test_every_module_has_a_room():
    assert {room(path) for path in MODULES} <= set(FLOOR)


def test_imports_point_downward():
    upward = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in MODULES
        for other in imports(path)
        if FLOOR[other] > FLOOR[room(path)]
    ]
    assert upward == []


def test_the_test_sees_an_upward_import(tmp_path):
    module = tmp_path / "costs.py"
    module.write_text("def late():\n    from keodrift.drifts import Drift\n    import keodrift\n")
    assert imports(module) == {"drifts", "__init__"}


def test_only_the_reductions_meet_pairs_through_keops():
    users = {
        room(path)
        for path in MODULES
        if any(word in path.read_text(encoding="utf-8") for word in ("pykeops", "keopscore"))
    }
    assert users <= {"reductions", "cli"}
