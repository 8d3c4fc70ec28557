# `make demo` and `make test` do all that is needed on a machine with Python 3.11 or
# newer, git and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One lock file per end of the supported Pythons.
LOCK := locks/$(shell $(PYTHON) -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py313")').txt
# uv installs in a quarter of pip's time; pip reads pip.conf, which may name the only index
# that can be reached.
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python -c $(LOCK) $(1) || \
  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(LOCK) $(1)
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check acceptance lock clean

help:  ## Lists the targets.
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*##/:/'

setup: $(VENV)/installed  ## Prepares .venv.

demo: setup  ## Trains a DResNet on real images of digits, in runs/demo.
	$(BIN)/python -m dresnet_jax.train --config=configs/digits.py --workdir=runs/demo

# Three workers on two cores, since some tests wait.
test: check  ## Runs every check: format, lint, types, tests.
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow" --durations=25

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What is timed is compiled as for users.
acceptance: export XLA_FLAGS :=
acceptance: $(VENV)/installed-dev  ## Runs what is promised of the whole, slow tests too, and prints the figures.
	$(BIN)/python -m pytest -s tests/acceptance
	$(BIN)/python -m pytest -m slow

lock:  ## Writes the lock file of this Python from the newest releases.
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	{ echo "# Written by 'make lock' with $$($(PYTHON) --version)."; \
	  $(VENV)-lock/bin/python -m pip freeze; } > $(LOCK)
	rm -rf $(VENV)-lock

clean:  ## Removes .venv and what tools left behind; keeps runs.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache

$(VENV)/installed: requirements.txt $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  f"Python 3.11 or newer is needed; $(PYTHON) is {sys.version.split()[0]}. Name another: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check \
	  pip uv 2>/dev/null || \
	  { $(BIN)/python -m ensurepip && $(BIN)/python -m pip install --quiet pip uv; }
	$(call INSTALL,-r requirements.txt)
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(call INSTALL,-r requirements-dev.txt)
	touch $@
