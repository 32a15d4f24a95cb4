# The front door. Every target creates .venv and fills it with what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# On both processors, where there are two; in one process: PYTEST_ARGS=
CPUS := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
PYTEST_ARGS ?= $(if $(filter-out 1,$(CPUS)),--numprocesses 2 --dist loadfile --max-worker-restart 1)

PORT ?= 8000

# Of the versions in an environment: the lowest that pyproject.toml allows.
LOWEST ?= .venv-lowest
LOWEST_TESTS := tests/config tests/test_lowest.py tests/test_style.py tests/test_close.py tests/test_patched.py \
	tests/test_driver.py tests/test_import.py tests/test_unanswered.py \
	tests/test_nonthreaded.py tests/cli/test_command.py tests/integrations/test_otel.py tests/integrations/test_ledger.py \
	tests/integrations/test_missing.py tests/publish/test_files.py

.PHONY: help demo examples test test-lowest test-psycopg-pool soak lint docs bench bench-failover clean
help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# One stamp per extra: installed again only when pyproject.toml changes.
$(VENV)/.stamp-%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pgdbpool[$*] into $(VENV); this may take a minute" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

demo: $(VENV)/.stamp-demo ## a primary and two standbys, readers and writers, two failures; about half a minute
	@$(BIN)/pgdbpool demo

examples: $(VENV)/.stamp-examples ## run a deployment by hand: make examples ROW=gunicorn-threads; without ROW, list them
	@$(BIN)/python -m examples.run $(ROW) --port $(PORT)

test: lint docs $(VENV)/.stamp-dev ## lint, types, docs, and all tests on real PostgreSQL servers
	$(BIN)/python -m pytest $(PYTEST_ARGS)

	@echo "not tested: the lowest versions that pyproject.toml allows; with a package index, make test-lowest does"

$(LOWEST)/.stamp: pyproject.toml .ci/lowest.py
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@echo "installing the lowest versions into $(LOWEST); this may take a minute" >&2
	@$(PYTHON) .ci/lowest.py > $(LOWEST)/constraints.txt
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt \
		-e '.[binary,testing,cli,demo,otel,prometheus]' pytest pytest-xdist hypothesis uvloop psutil \
		opentelemetry-exporter-otlp-proto-http
	@touch $@

test-lowest: $(LOWEST)/.stamp ## a part of the tests, with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -p no:cacheprovider --numprocesses 2 --dist loadfile $(LOWEST_TESTS)

test-psycopg-pool: $(VENV)/.stamp-dev ## psycopg_pool's own tests through a shim; PSYCOPG=FOLDER where its source is, else git fetches it
	$(BIN)/python -m tests.suites.run $(if $(PSYCOPG),--source $(PSYCOPG))

soak: $(VENV)/.stamp-dev ## the simulation, on all processors, until stopped
	$(BIN)/python -m tests.simulation --soak

lint: $(VENV)/.stamp-dev ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.stamp-dev ## build the documentation; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.stamp-bench ## compare with other pools, side by side, in one run
	$(BIN)/python -m bench

bench-failover: $(VENV)/.stamp-bench ## what callers notice when servers fail, compared with other pools
	$(BIN)/python -m bench.failover

clean: ## remove everything these targets made
	rm -rf $(VENV) $(LOWEST) docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
