# The two commands: `make loop` plays one turn of the wheel, `make test` runs every test. Each sets itself up.
# PYTHON must be 3.11 or newer; pip and the package registries are all else that is needed.

PYTHON ?= python3.11
VENV ?= .venv
RATCHET_HOME ?= $(CURDIR)/.ratchet
export RATCHET_HOME
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help loop test check lint types contracts up down bench chaos clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]' --editable ./client
	touch $@

loop: $(INSTALLED)  ## One turn of the wheel on real components: from a request to a promoted adapter
	$(BIN)/ratchet loop $(ARGS)

test: $(INSTALLED)  ## Every test; starts a real broker, PostgreSQL, Unleash and vLLM of its own
	$(BIN)/pytest $(ARGS)

lint: $(INSTALLED)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

contracts: $(INSTALLED)  ## Import contracts and schema drift
	$(BIN)/lint-imports
	$(BIN)/ratchet contract check

check: lint types contracts test  ## What CI runs

up: $(INSTALLED)  ## Start the local stack and all services
	$(BIN)/ratchet up $(ARGS)

down: $(INSTALLED)  ## Stop what `up` started
	$(BIN)/ratchet down

bench: $(INSTALLED)  ## Benchmarks; results go to tests/benchmarks/results
	$(BIN)/python -m tests.benchmarks

chaos: $(INSTALLED)  ## A quarter of an hour of kills, outages and full disks; ends with what was lost and doubled: nothing
	$(BIN)/python -m tests.chaos $(ARGS)

clean:  ## Remove the environment and all local state (stops the stack first)
	-$(BIN)/ratchet down
	rm -rf $(VENV) $(RATCHET_HOME)
