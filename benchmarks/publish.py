"""Puts the tables and figures of the last runs into benchmarks/README.md and beside it.

    python benchmarks/publish.py

A table stands between ``<!-- SCRIPT NAME -->`` and ``<!-- end -->`` and comes from
``outputs/SCRIPT/NAME.json`` through the script's own ``table``; an image of the page is the one of
the same name under outputs. What was not run stays.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path

PAGE = Path(__file__).with_name("README.md")
BLOCK = re.compile(r"<!-- (\w+) (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def fresh(block: re.Match[str]) -> str:
    script, name = block.groups()
    path = Path("outputs") / script / f"{name}.json"
    if not path.exists():
        print(f"{script} {name}: no {path}, left as it is")
        return block[0]
    table = importlib.import_module(script).table(json.loads(path.read_text()))
    print(f"{script} {name}: from {path}")
    return f"<!-- {script} {name} -->\n{table}\n<!-- end -->"


if __name__ == "__main__":
    page = BLOCK.sub(fresh, PAGE.read_text())
    PAGE.write_text(page)
    for name in re.findall(r"\]\((\w+\.png)\)", page):
        for found in list(Path("outputs").glob(f"*/{name}"))[:1]:
            shutil.copyfile(found, PAGE.with_name(name))
            print(f"{name}: from {found}")
