# make demo, make test, make help: all that a fresh clone needs. No root, no compiler, no MPI of the machine's own.
#
# MPI=wheel (the default) installs the MPI that comes as a Python wheel and starts its own mpirun, always by full path:
# an mpirun of another MPI would start N programs that are each rank 0 of 1.
# MPI=system, for clusters, installs no MPI and takes mpirun from PATH; its library must be the one that mpi4py finds
# (`module load` usually sees to it; MPI4PY_LIBMPI=/path/to/libmpi.so names one). Debian's Open MPI, as root on a small
# machine, wants  MPI=system MPIRUN="mpirun --allow-run-as-root --oversubscribe". Its environment is a folder of its own.
#
# Compiled kernels are kept in HPDL_CACHE_DIR (~/.cache/hpdl_mpi unless set).

PYTHON ?= python3
MPI ?= wheel
NP ?= 2
JOB ?= jobs/lenet_mnist.toml

ifeq ($(MPI),wheel)
VENV := .venv
EXTRA := [mpich]
MPIRUN ?= $(CURDIR)/$(VENV)/bin/mpirun
else ifeq ($(MPI),system)
VENV := .venv-system
EXTRA :=
MPIRUN ?= mpirun
else
$(error MPI=$(MPI): expected wheel or system)
endif

BIN := $(CURDIR)/$(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# One worker for each core, each with what it has compiled: more than a few cost more memory than they save time.
WORKERS := -n auto --maxprocesses 8 --dist worksteal
# The last resort: a test that hangs ends by itself long before (see [tool:pytest] in setup.cfg).
LIMIT := timeout --kill-after=30

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

##@ Use
.PHONY: demo
demo: $(VENV)/installed ## train a LeNet on MNIST on two ranks (NP=4 make demo for four) into runs/demo
	rm -rf runs/demo
	$(MPIRUN) -n $(NP) $(BIN)/hpdl train $(JOB) --run-dir runs/demo

.PHONY: install
install: $(VENV)/installed ## make the environment (.venv) with the hpdl command

##@ Test
.PHONY: test
test: lint types walls docstrings test-unit test-mpi ## everything that needs neither PyTorch nor Slurm

.PHONY: test-unit
test-unit: $(VENV)/installed-test ## the suite of one process
	$(PYTEST) $(WORKERS) tests/unit

.PHONY: test-mpi
test-mpi: test-mpi-2 test-mpi-3 test-mpi-4 ## the suite of several ranks on 2, 3 and 4 of them

.PHONY: test-mpi-2 test-mpi-3 test-mpi-4
test-mpi-2 test-mpi-3 test-mpi-4: test-mpi-%: $(VENV)/installed-test
	$(LIMIT) 900 $(MPIRUN) -n $* $(PYTEST) --with-mpi tests/mpi

.PHONY: test-one
test-one: $(VENV)/installed-test ## one test: make test-one TEST=tests/mpi/test_ring.py::test_sum NP=3
	$(if $(findstring tests/mpi,$(TEST)),$(LIMIT) 900 $(MPIRUN) -n $(NP)) \
	$(PYTEST) $(if $(findstring tests/mpi,$(TEST)),--with-mpi) $(TEST)

.PHONY: test-parity
test-parity: $(VENV)/installed-parity ## against PyTorch, which it installs
	$(PYTEST) $(WORKERS) tests/parity

.PHONY: test-cluster
test-cluster: $(VENV)/installed-test ## on a Slurm cluster of two nodes and, as root, on four machines: all of them this one
	$(PYTEST) tests/cluster

##@ Measure
.PHONY: bench
bench: $(VENV)/installed-parity ## training steps against PyTorch, one after the other, on an idle machine: an hour or more
	PATH="$(BIN):$$PATH" benchmarks/step.sh

.PHONY: bench-comm
bench-comm: $(VENV)/installed-parity ## sums over ranks and data-parallel steps, against MPI's and PyTorch's; root for a network
	PATH="$(BIN):$$PATH" MPIRUN="$(MPIRUN)" benchmarks/comm.sh

##@ Check
.PHONY: lint
lint: $(VENV)/installed-test ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/installed-test ## types
	$(BIN)/mypy

.PHONY: walls
walls: $(VENV)/installed-test ## which room imports which
	$(BIN)/lint-imports --no-cache

.PHONY: docstrings
docstrings: $(VENV)/installed-test ## form of the public docstrings
	find hpdl_mpi -name '*.py' -exec $(BIN)/numpydoc lint {} +

.PHONY: format
format: $(VENV)/installed-test ## rewrite the code as `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## remove environments and caches, not runs
	rm -rf .venv .venv-system build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { print "\n" substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' \
	$(MAKEFILE_LIST)

# Environments. Each file says that the extras it is named for are installed, as setup.cfg has them today.

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "hpdl_mpi needs Python 3.11 or newer, and \"$(PYTHON)\" is not: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.$(EXTRA)'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[test,dev]'
	touch $@

$(VENV)/installed-parity: $(VENV)/installed-test
	$(BIN)/pip install --quiet --editable '.[parity]'
	touch $@
