# make demo: set up what it needs and run the main job on the shipped trace.
# make test: set up what it needs and run lint, types and all tests.
# make test-latest: the same in a second environment, with the newest release of everything that pyproject.toml admits.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
# One thread a process: the tests already run in parallel.
export OMP_NUM_THREADS ?= 1
# In a checkout loops are compiled in half the time, and run as fast or a tenth slower (docs/benchmarks.md); a wheel's,
# that of .ci/run too, are compiled at numba's own level, 3.
export NUMBA_OPT ?= 1
# Whatever the machine's habit: bytecode is kept, or each of a thousand processes compiles every library that it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-latest test-capture-oldest lock lint types tests properties format benchmarks trace policies clean help

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.base
	$(BIN)/moecast demo --out out

test: lint types tests

test-latest:
	$(MAKE) test VENV=.venv-latest LATEST=1

# make test-capture-oldest: the capture's tests on the oldest transformers that it claims (make test runs the newest).
test-capture-oldest: $(VENV)/.oldest
	PYTHONPATH=$(VENV)/oldest $(BIN)/pytest -n $(JOBS) --dist worksteal -q tests/hf

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

# make properties: the property tests on newly drawn inputs, ROUNDS times (make test draws the same ones every time);
# then INPUTS hostile files for the readers, in about ten minutes: anew or those of SEED (READERS: some, no rounds).
ROUNDS ?= $(if $(READERS),0,10)
INPUTS ?= 120000
properties: export MOECAST_THREADS ?= 1
properties: $(VENV)/.dev
	for round in $$(seq $(ROUNDS)); do \
		$(BIN)/pytest -n $(JOBS) --dist worksteal -q -m hypothesis --hypothesis-profile=search || exit 1; done
	$(BIN)/python -m tests.fuzz $(READERS) --inputs $(INPUTS) --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

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

# Everything is installed in the versions of requirements/, by hash, torch apart: its build differs by platform (CPU,
# CUDA), so that no list of hashes fits all, and what a CUDA build needs besides it names itself, exactly.
# What is imported is compiled then: nine tenths of the libraries' files never are.
PIP := $(BIN)/python -m pip install --quiet --no-compile
LOCKED := $(PIP) --no-deps --require-hashes
TORCH := torch==2.13.0

$(VENV)/.pip: requirements/pip.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] $(if $(LATEST),,<= (3, 13)))' || { \
		echo "moecast is locked for Python 3.11 to 3.13; set PYTHON=... (or make test-latest on a newer one)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) --requirement requirements/pip.txt
	@touch $@

ifdef LATEST
$(VENV)/.base: $(VENV)/.pip pyproject.toml
	$(PIP) --upgrade --upgrade-strategy eager --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) --upgrade --upgrade-strategy eager --editable . --group lint --group test
	$(BIN)/python -m pip list
	@touch $@
else
$(VENV)/.base: $(VENV)/.pip pyproject.toml requirements/base.txt
	$(LOCKED) --requirement requirements/base.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base requirements/dev.txt
	$(LOCKED) --requirement requirements/dev.txt
	$(PIP) $(TORCH)
	@touch $@
endif

$(VENV)/.oldest: $(VENV)/.dev requirements/oldest.txt
	rm -rf $(VENV)/oldest
	$(LOCKED) --target $(VENV)/oldest --requirement requirements/oldest.txt
	@touch $@

# make lock: resolve requirements/ anew, to the newest versions that pyproject.toml admits.
UNLOCKED := torch nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft \
	nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
	nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx cuda-bindings cuda-pathfinder cuda-toolkit
COMPILE = $(VENV)/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-annotate --custom-compile-command "make lock" $(addprefix --no-emit-package ,$(UNLOCKED))
lock:
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/python -m pip install --quiet uv
	echo "pip>=25.1" | $(COMPILE) - --output-file requirements/pip.txt
	$(COMPILE) pyproject.toml --group build --group lint --group test --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --group build --constraint requirements/dev.txt --output-file requirements/base.txt
	$(COMPILE) --group oldest --output-file requirements/oldest.txt

clean:
	rm -rf .venv .venv-latest build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
