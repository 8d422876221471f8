"""Brings figures and tables of the last runs into this folder and its page.

    python examples/results/publish.py

A table stands between ``<!-- include PATH -->`` and ``<!-- end -->`` and is that file, under
outputs/; an image in this folder is the one of the same name there. What was not run stays.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

HERE = Path(__file__).parent
PAGE, OUTPUTS = HERE / "README.md", Path("outputs")
BLOCK = re.compile(r"<!-- include (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def fresh(block: re.Match[str]) -> str:
    source = OUTPUTS / block[1]
    if not source.exists():
        print(f"no {source}: its table stays")
        return block[0]
    text = re.sub(r"^## ", "### ", source.read_text().strip(), flags=re.MULTILINE)
    return f"<!-- include {block[1]} -->\n{text}\n<!-- end -->"


if __name__ == "__main__":
    page = BLOCK.sub(fresh, PAGE.read_text())
    PAGE.write_text(page)
    for name in re.findall(r"\]\((\w+\.(?:png|gif))\)", page):
        found = list(OUTPUTS.glob(f"*/{name}"))
        if found:
            shutil.copyfile(found[0], HERE / name)
        else:
            print(f"no {name} under {OUTPUTS}: the figure stays")
