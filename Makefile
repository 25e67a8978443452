# make demo: set up what it needs and run the main job on the shipped trace.
# make test: set up what it needs and run lint, types and all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
# One thread a process: the tests already run in parallel.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint types tests properties format benchmarks trace policies clean help

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.base
	$(BIN)/moecast demo --out out

test: lint types tests

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

tests: export MOECAST_THREADS ?= 1
tests: $(VENV)/.dev
	$(BIN)/pytest -n $(JOBS) --dist worksteal -q

# make format: format and mend what can be mended.
format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# make properties: the property tests on newly drawn inputs, ROUNDS times (make test draws the same ones every time).
ROUNDS ?= 10
properties: export MOECAST_THREADS ?= 1
properties: $(VENV)/.dev
	for round in $$(seq $(ROUNDS)); do \
		$(BIN)/pytest -n $(JOBS) --dist worksteal -q -m hypothesis --hypothesis-profile=search || exit 1; done

# make benchmarks: print every table of docs/benchmarks.md anew (not those that train models first: docs/own-model.md).
TRAINING := benchmarks/policy_settings.py benchmarks/sinkhorn_potentials.py
benchmarks: $(VENV)/.dev
	for file in $(filter-out $(TRAINING),$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# make trace: train the small model again and capture the shipped trace (hours on a CPU).
trace: $(VENV)/.dev
	$(BIN)/moecast capture train --out out/trace.parquet

# make policies: train the small models of docs/own-model.md, one per router policy, and capture their traces.
policies: $(VENV)/.dev
	$(BIN)/moecast capture train --size policies --policy all --threads 1 --out out/policies

$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "moecast needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.base: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --editable . --group lint --group test
	@touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
