# Every target makes what it needs of a virtual environment of its own: Python >= 3.11 and pip are all it takes.
#
#   make demo    train, annotate and draw on real cells (demo/)     make docs       the documentation (docs/_build/html)
#   make test    the tests                                          make tutorials  execute the notebooks
#   make lint    ruff's checks and formatting                       make build      sdist and wheel (dist/)
#
# Variables: PYTHON, VENV, CONSTRAINTS (empty: newest versions), DEMO (folder), TESTS (arguments of pytest),
# INPLACE (--inplace: keep the notebooks' new outputs).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
DEMO ?= demo
TESTS ?=
INPLACE ?=

PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# Tests and notebooks run in two processes; each keeps to one thread.
ONE_THREAD := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
# Sphinx's extensions call what Sphinx deprecates; its own warnings stay errors.
QUIET := PYTHONWARNINGS=ignore::DeprecationWarning

.PHONY: demo test lint format docs tutorials build clean
.SECONDARY:

demo: $(VENV)/.core
	$(VENV)/bin/cellxpert demo --out $(DEMO)

test: $(VENV)/.core $(VENV)/.group-test
	$(ONE_THREAD) $(PY) -m pytest -n 2 $(TESTS)

lint: $(VENV)/.group-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(VENV)/.group-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(VENV)/.core $(VENV)/.group-doc
	$(QUIET) $(PY) -m sphinx -E -W --keep-going -b html docs docs/_build/html

tutorials: $(VENV)/.core $(VENV)/.group-tutorials
	ls tutorials/*.ipynb | $(ONE_THREAD) xargs -n 1 -P 2 $(VENV)/bin/jupyter-execute --timeout=600 $(INPLACE)

build: $(VENV)/.group-dev
	$(PY) -m build --outdir dist .

clean:
	rm -rf $(VENV) $(DEMO) dist docs/_build docs/generated docs/tutorials .pytest_cache .ruff_cache
	find src tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The files named .core and .group-* say what is installed; they are older than what they were made from when it changed.
$(VENV)/.pip: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade "pip>=25.1"
	touch $@

# torch comes first and alone: an index or folder that offers a CPU build of the pinned version then decides which one is taken.
$(VENV)/.core: $(VENV)/.pip pyproject.toml
	@echo "Installing cellxpert and what it needs into $(VENV); this takes minutes, once."
	$(INSTALL) torch
	$(INSTALL) --editable .
	touch $@

$(VENV)/.group-%: $(VENV)/.pip pyproject.toml
	$(INSTALL) --group $*
	touch $@
