"""What a user meets before the mathematics: the wheel, the README, the top level."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "examples/results/README.md",
]
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "benchmarks",
    "configs",
    "constraints.txt",
    "examples",
    "keodrift",
    "pyproject.toml",
    "tests",
}


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def requirement_name(line: str) -> str:
    """The package that a requirement is about, spelled as an index compares names."""
    name = re.match(r"[A-Za-z0-9._-]+", line)
    assert name is not None, line
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def test_version_is_the_installed_one():
    import keodrift

    assert keodrift.__version__ == importlib.metadata.version("keodrift")


def test_wheel_ships_configs_and_types(tmp_path):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed (extra: test)")
    # A copy, since builders leave files behind and other tests may read the tree meanwhile.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("keodrift", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("keodrift-*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())

    assert "keodrift/py.typed" in shipped
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs
    assert {f"keodrift/{config}" for config in configs} <= shipped
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "keodrift").rglob("*.py")}
    assert modules <= shipped


def test_every_requirement_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    wanted = {requirement_name(line) for line in importlib.metadata.requires("keodrift") or []}
    assert wanted - {"keodrift"} <= {requirement_name(pin) for pin in pins}


def test_errors_name_extras_that_exist():
    extras = set(importlib.metadata.metadata("keodrift").get_all("Provides-Extra") or [])
    named = set()
    for path in (ROOT / "keodrift").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "MissingDependencyError"
            ):
                named.add(ast.literal_eval(node.args[2]))
    assert named
    assert named <= extras


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    inside = [link for link in targets if not urlsplit(link).scheme and not link.startswith("#")]
    missing = [link for link in inside if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_examples_on_the_page_run(page):
    blocks = python_blocks(page)
    assert blocks
    names: dict[str, object] = {"__name__": page}
    for block in blocks:
        exec(compile(block, page, "exec", dont_inherit=True), names)


def test_top_level_holds_what_it_should():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, or git is missing: nothing says which files are tracked")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert tracked == TOP_LEVEL
