# The two commands: `make loop` plays one cycle of the loop, `make test` runs every test. Each sets itself up.
# A Python from 3.11 to 3.13 is looked for (deploy/setup.sh; PYTHON names another); the package registries are all
# else that is needed.

PYTHON ?=
VENV ?= .venv
RATCHET_HOME ?= $(CURDIR)/.ratchet
export RATCHET_HOME
unexport PYTHONDONTWRITEBYTECODE  # Tests start some hundred processes: the first one compiles for all.
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help loop test lane-real lane-fast lane-patient test-real test-outages test-fast test-redacting test-others test-patient check lint types contracts check-loop up down bench chaos mutants clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt deploy/setup.sh
	@sh deploy/setup.sh $(VENV) $(PYTHON)
	@touch $@

loop: $(INSTALLED)  ## One cycle of the loop on real components: from a request to a promoted adapter
	$(BIN)/ratchet loop $(ARGS)

# Four lanes side by side, so that no processor waits: tests of real components, some of which measure seconds; OUTAGES,
# which mostly wait for what was killed; and, at low priority, tests that pass however busy the machine is: FAST ones compute,
# PATIENT ones start components, too. REDACTING are the fast ones that load the language model; others need not load it.
FAST := tests/docs tests/unit tests/contract tests/benchmarks
REDACTING := $(addprefix tests/unit/,gateway prediction_log shared)
OUTAGES := tests/chaos/test_chaos.py \
	$(patsubst %,tests/integration/test_%.py,gateway_outages gateway_spool lake_and_broker secure_broker)
PATIENT := tests/e2e tests/chaos/test_checker.py tests/chaos/rollouts/test_checks.py \
	$(patsubst %,tests/integration/test_%.py,console dataset_builder dataset_build_job deployer distributed_training \
	failure_miner forget fusion gateway_access gateway_fuzz gateway_media gateway_traces import lake_on_s3 \
	loop_faults migrations evaluation_page preference_stage retention row_places scheduler simulated_rollouts storage_in_s3 sweep \
	topics trainer training_memory training_recipe user_corrections)

# One thread each: threads of OpenMP wait by spinning, which takes the processor from what runs beside them.
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/pytest

test: $(INSTALLED)  ## Every test; starts a real broker, PostgreSQL, Unleash and vLLM of its own
	$(MAKE) -j4 lane-real lane-patient lane-fast test-others

lane-real:
	$(MAKE) test-real
	$(if $(AFTER),$(MAKE) $(AFTER))

lane-fast:
	$(MAKE) test-redacting
	$(if $(BESIDE),nice -n 5 $(MAKE) $(BESIDE))

lane-patient:
	$(MAKE) test-outages
	$(MAKE) test-patient

test-real: $(INSTALLED)
	$(PYTEST) $(ARGS) $(addprefix --ignore=,$(FAST) $(OUTAGES) $(PATIENT))

test-outages: $(INSTALLED)
	$(PYTEST) $(ARGS) $(OUTAGES)

test-fast: test-redacting test-others

test-redacting: $(INSTALLED)
	nice -n 5 $(PYTEST) $(ARGS) $(REDACTING)

test-others: $(INSTALLED)
	nice -n 5 $(PYTEST) $(ARGS) $(addprefix --ignore=,$(REDACTING)) $(FAST)

test-patient: $(INSTALLED)
	nice -n 5 $(PYTEST) $(ARGS) $(PATIENT)

lint: $(INSTALLED)  ## ruff; words of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.contract.words

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

contracts: $(INSTALLED)  ## Import contracts, drift of the schemas and of docs/configuration.md
	$(BIN)/lint-imports
	$(BIN)/ratchet contract check
	$(BIN)/python -m deploy.settings_reference --check

check: $(INSTALLED)  ## What CI runs
	$(MAKE) test AFTER=check-loop BESIDE="lint types contracts"

check-loop: $(INSTALLED)  ## A bare `make loop`, as a newcomer runs it; its report, what a restart keeps, every documented block
	env -u KAFKA_HOME $(MAKE) loop ARGS="--report report"
	$(BIN)/python -m tests.e2e.loop_report report
	env -u KAFKA_HOME $(BIN)/python -m tests.e2e.restart report
	env -u KAFKA_HOME $(BIN)/python -m tests.docs
	env -u KAFKA_HOME $(BIN)/ratchet down

up: $(INSTALLED)  ## Start the local stack and all services
	$(BIN)/ratchet up $(ARGS)

down: $(INSTALLED)  ## Stop what `up` started
	$(BIN)/ratchet down

bench: $(INSTALLED)  ## Benchmarks; results go to tests/benchmarks/results
	$(BIN)/python -m tests.benchmarks

chaos: $(INSTALLED)  ## A quarter of an hour of kills, outages and full disks; ends with what was lost and doubled: nothing
	$(BIN)/python -m tests.chaos $(ARGS)

mutants: $(INSTALLED)  ## Planted faults, each seen by a test, in three quarters of an hour; goes on where it was interrupted
	$(BIN)/python -m tests.mutants $(ARGS)

clean:  ## Remove the environment and all local state (stops the stack first)
	-$(BIN)/ratchet down
	-cd $(RATCHET_HOME) && case "$$(cat config/postgres/data_folder)" in /*) rm -rf "$$(dirname "$$(cat config/postgres/data_folder)")";; esac  # Root's database may be outside.
	rm -rf $(VENV) $(RATCHET_HOME)
