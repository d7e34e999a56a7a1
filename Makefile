# `make demo` and `make test` set up everything they need, also on a fresh machine.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/installed

# The models are small: one thread per process is the fastest.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test docs coverage fuzz compatibility lint format wheel clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(INSTALLED)  ## make the virtual environment (the others do it themselves)

demo: $(INSTALLED)  ## train a GRU flow on real data and compare it with a naive forecast
	$(BIN)/python -m deltaflow.demo --output demo

test: $(INSTALLED)  ## run all tests, the documentation's examples among them
	$(BIN)/python -m pytest -n 2

docs: $(VENV)/installed-docs  ## build the documentation and run its tutorials; a dead link fails
	$(BIN)/python -m sphinx -n -W --keep-going -b html docs docs/_build/html
	@echo "Documentation: docs/_build/html/index.html"

coverage: $(INSTALLED)  ## run all tests and list the lines that none of them reaches
	$(BIN)/python -m pytest -n 2 --cov

fuzz: $(INSTALLED)  ## feed thousands of random DataFrames and schemas through training and forecasting
	$(BIN)/python -m pytest tests/laws/test_any_frame.py tests/laws/test_any_schema.py --hypothesis-profile fuzz

compatibility: $(VENV)-oldest/installed $(VENV)-newest/installed  ## test with the oldest and newest versions
	$(VENV)-oldest/bin/python -m pytest
	$(VENV)-newest/bin/python -m pytest

lint: $(INSTALLED)  ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(INSTALLED)  ## build the package, install it in an empty environment and run it there
	rm -rf dist build/wheel
	$(BIN)/python -m build
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install -c constraints.txt "$$(ls dist/*.whl)[plot]"
	cd build && wheel/bin/python -m deltaflow.demo --quick --output wheel/demo

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest dist build demo docs/_build docs/api/generated .pytest_cache .ruff_cache .hypothesis .coverage*

# The lower bounds of pyproject.toml as pins, and whatever is newest within its bounds.
$(VENV)-oldest/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-oldest
	grep -oE '"[a-z-]+(\[[a-z]+\])?>=[0-9.]+' pyproject.toml | \
		sed -E 's/"//; s/\[.*\]//; s/>=/==/' | sort -u > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install -c $(VENV)-oldest/constraints.txt -e ".[dev,plot,cli]"
	touch $@

$(VENV)-newest/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --upgrade --upgrade-strategy eager -e ".[dev,plot,cli]"
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e ".[dev,plot,cli]"
	touch $@

$(VENV)/installed-docs: $(INSTALLED) docs/constraints.txt
	$(PIP) install -c constraints.txt -c docs/constraints.txt -e ".[docs]"
	touch $@
