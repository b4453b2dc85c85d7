# `make demo`, `make test` and `make test-slurm` each set themselves up: a virtual environment in .venv, then the run.
PYTHON ?= python3
JOBS ?= 2# tests at a time; each wants a processor and 2 GB of memory
BIN := .venv/bin
# a file's tests share what is costly to make, so they stay in one process; the order is tests/conftest.py's
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-fast test-slurm coverage lint docs clean

demo: .venv/installed
	$(BIN)/vtp demo

test: .venv/installed-test lint
	$(PYTEST)

test-fast: .venv/installed-test
	$(PYTEST) -m "not slow"

# As `make test`, and a table of how much of each room ran. Where Python has sys.monitoring (3.12), it costs little.
coverage: .venv/installed-test lint
	$(PYTEST) --cov=pipeline --cov-report=
	$(BIN)/python .ci/coverage_by_room.py

# Against a real Slurm of one node, installed here as root from Debian's packages where it is missing.
test-slurm: .venv/installed-test
	tests/slurm/install.sh
	$(BIN)/python -m pytest tests/test_slurm.py

# The pages of docs/ as a site in site/; a dead link, or a page that the navigation lacks, is an error.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

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

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

clean:
	rm -rf .venv
