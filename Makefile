# The two commands: `make loop` plays one cycle of the loop, `make test` runs every test. Each sets itself up.
# A Python from 3.11 to 3.13 is looked for (deploy/setup.sh; PYTHON names another); the package registries are all
# else that is needed.

PYTHON ?=
VENV ?= .venv
RATCHET_HOME ?= $(CURDIR)/.ratchet
export RATCHET_HOME
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help loop test test-real test-fast test-patient check lint types contracts check-loop up down bench chaos clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt deploy/setup.sh
	@sh deploy/setup.sh $(VENV) $(PYTHON)
	@touch $@

loop: $(INSTALLED)  ## One cycle of the loop on real components: from a request to a promoted adapter
	$(BIN)/ratchet loop $(ARGS)

# Tests that pass however busy the machine is. FAST ones run in what the tests of real components leave of two processors,
# which is half. `make check` plays the loop beside PATIENT ones.
FAST := tests/unit tests/contract
PATIENT := tests/e2e tests/chaos/test_checker.py tests/chaos/rollouts/test_checks.py \
	$(patsubst %,tests/integration/test_%.py,console dataset_builder dataset_build_job deployer failure_miner forget \
	gateway_access gateway_fuzz gateway_media gateway_traces golden lake_on_s3 loop_faults migrations \
	evaluation_page retention row_places scheduler storage_in_s3 topics user_corrections)

test: $(INSTALLED)  ## Every test; starts a real broker, PostgreSQL, Unleash and vLLM of its own
	$(MAKE) -j2 test-real test-fast
	$(MAKE) -j2 test-patient $(BESIDE)

test-real: $(INSTALLED)
	$(BIN)/pytest $(ARGS) $(addprefix --ignore=,$(FAST) $(PATIENT))

test-fast: $(INSTALLED)
	nice -n 19 $(BIN)/pytest $(ARGS) -n 2 $(FAST)

test-patient: $(INSTALLED)
	nice -n 15 $(BIN)/pytest $(ARGS) $(PATIENT)

lint: $(INSTALLED)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

contracts: $(INSTALLED)  ## Import contracts, drift of the schemas and of docs/configuration.md
	$(BIN)/lint-imports
	$(BIN)/ratchet contract check
	$(BIN)/python -m deploy.settings_reference --check

check: $(INSTALLED)  ## What CI runs
	$(MAKE) test BESIDE="check-loop lint types contracts"

check-loop: $(INSTALLED)  ## A bare `make loop`, as a newcomer runs it; its report, and what a restart keeps, checked
	env -u KAFKA_HOME $(MAKE) loop ARGS="--report report"
	$(BIN)/python -m tests.e2e.loop_report report
	env -u KAFKA_HOME $(BIN)/python -m tests.e2e.restart report
	env -u KAFKA_HOME $(BIN)/ratchet down

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
