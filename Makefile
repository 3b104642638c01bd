# petl-ray: the commands a newcomer needs. `make demo` first; everything lives in .venv and .petl-ray.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An index to take torch from, e.g. one with CUDA or CPU builds; empty: pip's own.
TORCH_INDEX ?=
TORCH := torch>=2.8,<2.14
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help setup demo test test-long check format bench clean

help:
	@echo "make demo       install, then text to served adapters in one command (again: a no-op in seconds)"
	@echo "make test       all checks and tests; make test-long adds chaos and other tests of minutes"
	@echo "make check      ruff, mypy --strict, the floors of the house"
	@echo "make bench      the benchmarks, into docs/benchmarks.md; QUICK=1: prints what five minutes tell"

setup: $(VENV)/.dev

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "petl-ray needs Python 3.11 or newer: set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	@touch $@
$(VENV)/.torch: $(VENV)/.python
	if [ -n "$(TORCH_INDEX)" ]; then $(PIP) install --index-url "$(TORCH_INDEX)" "$(TORCH)"; fi
	@touch $@
$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "installing petl-ray and what it stands on into $(VENV) (some minutes, once)"
	$(PIP) install -e ".[demo]"
	@touch $@
$(VENV)/.dev: $(VENV)/.demo
	@echo "installing the tools of development into $(VENV)"
	$(PIP) install -e ".[dev]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/petl-ray run configs/quickstart.yaml

test: check
	$(BIN)/python -m pytest
test-long: check
	$(BIN)/python -m pytest -m "long or not long"
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) .petl-ray build *.egg-info
