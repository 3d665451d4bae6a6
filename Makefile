# Everything a newcomer needs: `make demo`, `make test`. Each target makes .venv if it is missing.
PYTHON ?= python3
# Optional address of a PyTorch package index, e.g. the CPU one where the default brings CUDA; see README.
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test check test-slow bench docs clean

demo: .venv/core
	$(BIN)/larpanda demo --out demo

test: .venv/dev  # one thread a worker: two libraries' threads on the same cores wait for each other
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: .venv/dev
	$(BIN)/python -m pytest -m slow

bench: .venv/dev
	$(BIN)/larpanda bench forward --voxels 1000,5000,20000
	$(BIN)/larpanda bench backward --voxels 3400 --batch 4 --threads 1
	$(BIN)/python benchmarks/geometry.py
	$(BIN)/python benchmarks/compare_generator.py

docs: .venv/docs
	$(BIN)/sphinx-build -W -q docs docs/_build
	@echo "docs/_build/index.html"

.venv/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit(f"Python {sys.version.split()[0]} is too old; larpanda needs 3.10 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) install --constraint constraints.txt --index-url $(TORCH_INDEX) torch)
	$(PIP) install --constraint constraints.txt --editable .
	@$(BIN)/python -c 'import torch; print("PyTorch", torch.__version__, "with CUDA " + torch.version.cuda if torch.version.cuda else "for the CPU")'
	@touch $@

.venv/dev: .venv/core
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv/docs: .venv/core
	$(PIP) install --constraint constraints.txt --editable '.[docs]'
	@touch $@

clean:
	rm -rf .venv demo docs/_build dist
