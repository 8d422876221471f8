"""``python -m keodrift``: the same as the ``keodrift`` command."""

from __future__ import annotations

import sys

from keodrift.cli import main

if __name__ == "__main__":
    sys.exit(main())
