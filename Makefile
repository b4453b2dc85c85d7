# `make demo`, `make test` and `make test-slurm` each set themselves up: a virtual environment in .venv, then the run.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slurm lint clean

demo: .venv/installed
	$(BIN)/vtp demo

test: .venv/installed-test lint
	$(BIN)/python -m pytest

# Against a real Slurm of one node, installed here as root from Debian's packages where it is missing.
test-slurm: .venv/installed-test
	tests/slurm/install.sh
	$(BIN)/python -m pytest tests/test_slurm.py

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

clean:
	rm -rf .venv
