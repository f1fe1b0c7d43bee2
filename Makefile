# kvtier's commands. Each makes .venv by itself; nothing outside the repository is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# The extra that speaks to the GPU, where the NVIDIA driver answers.
CUDA := $(shell nvidia-smi 2>/dev/null | sed -nE 's/.*CUDA.* Version: (12|13)\..*/,cuda\1/p')

.PHONY: help demo test test-lowest soak sanitize check format bench clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/check: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch $@ $(VENV)/test

$(VENV)/bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench,redis]'
	@touch $@

$(VENV)/demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[report$(CUDA)]'
	@touch $@

demo: $(VENV)/demo ## what cache and coalescing bring, on both samples (TRACE=mine.parquet: on yours)
	$(BIN)/python examples/demo.py $(TRACE)

test: $(VENV)/test ## the whole test suite
	$(BIN)/python -m pytest

test-lowest: ## the suite with the oldest dependencies that are supported
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[test]'
	$(LOWEST)/bin/python -m pytest

soak: $(VENV)/test ## long forms of the random tests
	KVTIER_CHAOS_SEEDS=400 $(BIN)/python -m pytest tests/simulation/test_chaos.py tests/simulation/test_events_chaos.py tests/simulation/test_resilience.py
	KVTIER_CHAOS_SEEDS=600 $(BIN)/python -m pytest --timeout=600 -s tests/simulation/test_remote_chaos.py
	KVTIER_CRASH_KILLS=200 $(BIN)/python -m pytest --timeout=3600 -s tests/simulation/test_nvme_crash.py
	KVTIER_ATTACK_ROUNDS=40 $(BIN)/python -m pytest --timeout=1800 tests/simulation/test_nvme_faults.py
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python bench/wire_fuzz.py
	KVTIER_PARITY_SEQUENCES=4000 $(BIN)/python -m pytest --timeout=1800 tests/unit/test_index_engines.py

# The sanitizers must be loaded before Python; lanes are threads, so that each access is seen.
SANITIZED := KVTIER_CUDA_ON_CPU_WORKERS=2 KVTIER_PARITY_SEQUENCES=4 $(BIN)/python -m pytest -s \
  --timeout=1800 -k 'kernels_decide or cuda_rows' tests/unit/test_index_engines.py tests/unit/test_cuda_rows.py

sanitize: $(VENV)/test ## the CUDA kernels on a CPU, watched for wrong addresses and races
	LD_PRELOAD=$$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
	  KVTIER_CUDA_ON_CPU_FLAGS='-fsanitize=address -DLANES_ARE_THREADS' $(SANITIZED)
	LD_PRELOAD=$$(g++ -print-file-name=libtsan.so) TSAN_OPTIONS=halt_on_error=1 \
	  KVTIER_CUDA_ON_CPU_FLAGS='-fsanitize=thread -DLANES_ARE_THREADS' $(SANITIZED)

check: $(VENV)/check ## lint, types, arrows between the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy kvtier backends/* bench examples tests/typing
	$(BIN)/lint-imports

format: $(VENV)/check ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/bench ## benchmarks beside their peers and limits, in short
	$(BIN)/python bench/hits.py --quick
	$(BIN)/python bench/engines.py --quick
	$(BIN)/python bench/nvme.py --quick
	$(BIN)/python bench/restart.py --quick
	$(BIN)/python bench/emulator.py --quick
	$(BIN)/python bench/remote.py --quick

clean: ## remove everything that was made
	rm -rf $(VENV) $(LOWEST) build
