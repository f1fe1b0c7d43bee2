# kvtier's commands. Each makes .venv by itself; nothing outside the repository is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
TRACE ?= traces/sample.parquet

.PHONY: help demo test test-lowest soak check format bench clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/base: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/base

$(VENV)/check: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch $@ $(VENV)/base $(VENV)/test

demo: $(VENV)/base ## replay and simulate the sample trace (TRACE=mine.parquet for another)
	$(BIN)/python examples/demo.py $(TRACE)

test: $(VENV)/test ## the whole test suite
	$(BIN)/python -m pytest

test-lowest: ## the suite with the oldest dependencies that are supported
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[test]'
	$(LOWEST)/bin/python -m pytest

soak: $(VENV)/test ## long forms of the random tests
	KVTIER_CHAOS_SEEDS=400 $(BIN)/python -m pytest tests/simulation/test_chaos.py

check: $(VENV)/check ## lint, types, arrows between the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy kvtier backends/* bench examples tests/typing
	$(BIN)/lint-imports

format: $(VENV)/check ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/test ## benchmarks beside their peers and limits, in short
	$(BIN)/python bench/hits.py --quick
	$(BIN)/python bench/engines.py --quick

clean: ## remove everything that was made
	rm -rf $(VENV) $(LOWEST) build
