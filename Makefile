# The two commands that matter: `make run` and `make test`. Both set up `.venv` from nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
SIZE ?= full
CPU ?= default

.PHONY: run test test-all test-other-cpu lint format bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(READY)

run: $(READY) ## Fit PPCA to the wine data, compare it with embeddings, write a report
	$(BIN)/latentlab run configs/ppca_wine.yaml --overwrite

lint: $(READY) ## Lint, format, types and words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/words.py

test: lint ## Everything but the long statistical checks; SEED=1 runs it with other random data
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(if $(SEED),--seed $(SEED)) -m "not long"

test-all: lint ## With the long statistical checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(if $(SEED),--seed $(SEED))

test-other-cpu: $(READY) ## Tests that depend on rounding or on the seed, as on a processor without AVX; CPU=avx2 without AVX-512
	tests/other_cpu.sh $(CPU) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(if $(SEED),--seed $(SEED)) -m "not long and not fixed"

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv-bench/.ready: pyproject.toml constraints.txt # a separate environment, so that tests run without the compared packages
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch .venv-bench/.ready

bench: .venv-bench/.ready ## Against NumPyro, PyMC, dynamax, hmmlearn and Pyro; SIZE=small runs in a few minutes
	.venv-bench/bin/python -m experiments.benchmarks --size $(SIZE)

clean:
	rm -rf $(VENV) .venv-bench .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
