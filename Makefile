# Set-up, demo and checks. Everything lands in .venv, pinned by constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The set-up is done again only when what it reads has changed.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)

# As variables rather than -c, the pins hold for what pip builds from source too; pip reads the
# second one for that.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --disable-pip-version-check --no-warn-script-location

.DEFAULT_GOAL := help
.PHONY: help setup engines demo theory test gpu lint format clean

help: ## Print this list
	@echo "keodrift: make TARGET [PYTHON=python3.11]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{printf "%-14s%s\n", $$1, $$2}'

setup: $(STAMP) ## Make .venv with everything the demo and the checks need

demo: setup engines ## Run the demo: figures and the two-mode table
	@$(BIN)/python examples/demo.py

theory: setup ## Run what the papers prove, one script a result: figures in outputs/theory
	@set -e; for script in examples/theory/*.py; do echo "==> $$script"; $(BIN)/python $$script; done

test: lint engines ## Run every check: lint, types, tests, doctests, coverage
	@echo "==> pytest: tests and doctests, with coverage"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal --cov --cov-report=term

# A GPU's tables lie in folders of their own, outputs/SCRIPT/cuda.
gpu: setup engines ## On a CUDA device: its tests, every benchmark, their tables
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: no CUDA device is there")'
	@$(PIP) --quiet --editable '.[bench]' && $(PIP) --quiet flash-sinkhorn || \
		echo "==> Not all peers were installed: the tables say which are missing"
	@status=0; \
	run() { echo "==> benchmarks/$$1.py"; script=$$1; shift; $(BIN)/python benchmarks/$$script.py \
		device=cuda output=outputs/$$script/cuda "$$@" || status=1; }; \
	echo "==> pytest -m cuda"; $(BIN)/python -m pytest -m cuda -s -rs tests || status=1; \
	run passes "dimensions=[2,3,6,16,64]" size=100000; \
	run field_error "sizes=[10000,100000]" limit=60 name=planar; \
	run field_error "problems=[mixture]" d=64 limit=60 name=mixture; \
	run scaling; run solver; run step; run costs; run labels; \
	run memory "sizes=[10000,100000,1000000]" "backends=[dense,keops,cells]" limit_mb=4000; \
	$(BIN)/python benchmarks/publish.py; exit $$status

lint: setup ## Check style, format and types only
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy

format: setup ## Rewrite the code in the house's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove .venv, caches and builds; outputs/ stays
	@rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .pytest_cache .hypothesis \
		.mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "keodrift needs Python 3.10 or newer, which '$(PYTHON)' is not: install one, or name it as in 'make test PYTHON=python3.11'." >&2; \
		exit 1; }
	@echo "==> Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON)' has no working venv module: install it (python3-venv on Debian and Ubuntu)." >&2; \
		exit 1; }
	@$(PIP) --quiet --upgrade pip
	@echo "==> Installing torch, the large one, as pinned in constraints.txt"
	@$(PIP) torch
	@echo "==> Installing keodrift and what else it needs, as pinned in constraints.txt"
	@$(PIP) --quiet --editable '.[demo,test]'
	@$(BIN)/python -c 'import importlib.metadata as m; print("==> Installed", ", ".join(f"{p} {m.version(p)}" for p in ("keodrift", "torch", "pykeops", "geomloss", "numpy")))'
	@rm -f $(VENV)/.installed-* && touch $@

# KeOps compiles its formulas; without a compiler the library works, with another engine.
engines: setup
	@{ for cxx in $$CXX g++ clang++; do command -v "$$cxx"; done | grep -q . && \
		test -f "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"; } || \
		echo "==> The KeOps engine needs a C++ compiler (g++) and the Python headers (Python.h), which were not both found: the tiled engine answers instead."
