"""Brings figures and tables of the last runs into this folder and its page, and keeps their cells.

    python examples/results/publish.py            # from outputs/ to here
    python examples/results/publish.py restore    # cells from here to outputs/, as if just run

A table stands between ``<!-- include PATH -->`` and ``<!-- end -->`` and is that file, under
outputs/; an image in this folder is the one of the same name there. What was not run stays.

A study is a folder of outputs/. The numbers of its finished cells, without networks, samples and
pictures, are lines of ``cells/STUDY.jsonl``, so that a study goes on where it was left, on another
machine too. Restored cells are those of the version that ran them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE, OUTPUTS, CELLS = HERE / "README.md", Path("outputs"), HERE / "cells"
BLOCK = re.compile(r"<!-- include (\S+) -->\n.*?<!-- end -->", re.DOTALL)
LOOK = '"w2_squared"'  # what every look at a training measures; its other lines are not drawn


def fresh(block: re.Match[str]) -> str:
    source = OUTPUTS / block[1]
    if not source.exists():
        print(f"no {source}: its table stays")
        return block[0]
    text = re.sub(r"^## ", "### ", source.read_text().strip(), flags=re.MULTILINE)
    return f"<!-- include {block[1]} -->\n{text}\n<!-- end -->"


def publish() -> None:
    page = BLOCK.sub(fresh, PAGE.read_text())
    PAGE.write_text(page)
    for name in re.findall(r"\]\((\w+\.(?:png|gif))\)", page):
        found = [path for path in OUTPUTS.glob(f"*/{name}") if name.startswith(path.parent.name)]
        if found:  # in the folder of the study that it shows
            shutil.copyfile(found[0], HERE / name)
        else:
            print(f"no {name} under {OUTPUTS}: the figure stays")
    for study in sorted({path.split("/")[0] for path in BLOCK.findall(page)}):
        keep(study)


def keep(study: str) -> None:
    """Adds the numbers of finished cells to those that are kept, but for quick ones."""
    store = CELLS / f"{study}.jsonl"
    kept = read(store)
    for path in sorted((OUTPUTS / study).glob("*/**/*.json*")):
        if any(part.endswith("quick") for part in path.parts):
            continue
        if path.suffix == ".json":
            kept[path.relative_to(OUTPUTS).as_posix()] = path.read_text()
        elif path.with_name("result.json").exists():
            looks = [line for line in path.read_text().splitlines() if LOOK in line]
            kept[path.relative_to(OUTPUTS).as_posix()] = "\n".join(looks) + "\n"
    if kept:
        CELLS.mkdir(exist_ok=True)
        lines = [json.dumps(line, ensure_ascii=False) for line in sorted(kept.items())]
        store.write_text("\n".join(lines) + "\n")


def restore() -> None:
    for store in sorted(CELLS.glob("*.jsonl")):
        cells = {OUTPUTS / path: text for path, text in read(store).items()}
        missing = {path: text for path, text in cells.items() if not path.exists()}
        for path, text in missing.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        print(f"{store.stem}: {len(missing)} of {len(cells)} files restored")


def read(store: Path) -> dict[str, str]:
    return dict(map(json.loads, store.read_text().splitlines())) if store.exists() else {}


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["restore"]):
        sys.exit(f"publish.py: {' '.join(sys.argv[1:])!r} is not known; nothing, or restore")
    restore() if sys.argv[1:] else publish()
