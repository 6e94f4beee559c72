# Every target does its own set-up: all it needs is Python >= 3.11, make and a package index.
# Use another interpreter or environment with `make test PYTHON=python3.12 VENV=elsewhere`.
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: help demo test test-quant test-all check format bench docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/:/'

demo: $(VENV)/.installed-demo  ## train a small real model on the CPU
	$(BIN)/zotune demo

test: $(VENV)/.installed-dev  ## run the tests
	$(BIN)/python -m pytest -n auto --dist worksteal

test-quant: $(VENV)/.installed-dev $(VENV)/.installed-quant  ## the tests of packed bases, with their libraries
	$(BIN)/python -m pytest -n auto --dist worksteal tests/quantised tests/test_sensitive.py tests/test_examples.py \
	  'tests/test_docs.py::test_page_runs[quantised.md]' tests/test_readme.py

test-all: $(VENV)/.installed-dev  ## run the slow tests too, and the GPU tests where there is a GPU
	$(BIN)/python -m pytest -n auto --dist worksteal -m ""

check: $(VENV)/.installed-dev  ## lint, format and types, without changing a file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## apply the lint fixes and the format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev $(VENV)/.installed-report  ## run every script of bench/
	@set -e; for script in $(filter-out bench/common.py,$(wildcard bench/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

docs: $(VENV)/.installed-docs  ## build docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

clean:  ## remove .venv, caches and everything that was built
	rm -rf .venv docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "zotune needs Python >= 3.11, $(PYTHON) is older or missing. Remedy: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone: resolved together with the rest, pip may fetch several builds of it, gigabytes each.
$(VENV)/.installed-torch: $(VENV)/pyvenv.cfg constraints.txt
	$(PIP) torch
	@touch $@

# One stamp per extra (dev, demo, docs): a second call installs nothing unless these files changed.
$(VENV)/.installed-%: $(VENV)/.installed-torch pyproject.toml constraints.txt
	$(PIP) -e '.[$*]'
	@touch $@
