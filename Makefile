# Needs Python 3.11 or newer, make and git; each target makes the virtual environment that it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DOCS_VENV ?= .venv-docs
PYTEST_WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help demo up test test-long fire-alerts test-containers coverage mutate chaos check docs dashboards format bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## start everything on embedded servers, watch calls being billed, end with an audit
	$(BIN)/metering demo

test: $(VENV)/.installed ## run the tests, on servers that they start themselves
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not long and not containers"

test-long: $(VENV)/.installed ## run the tests that take longer; Debian's servers that they need are installed first
	@tests/external_servers/install-servers
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist worksteal -m "long and not fired and not containers"

fire-alerts: $(VENV)/.installed ## cause what each alert is for, see it fire and end: 6 minutes of a machine that does nothing else
	$(BIN)/pytest -m fired tests/monitoring

test-containers: $(VENV)/.installed ## run docker-compose.yml through a life on this machine's Docker Engine, beside any that runs
	$(BIN)/pytest --verbose -m containers tests/containers

coverage: $(VENV)/.installed ## print branch coverage, that of the processes which tests start included: COVERAGE="tests/db tests/rules"
	$(BIN)/coverage erase
	status=0; $(BIN)/coverage run -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not long and not containers" $(COVERAGE) || status=$$?; \
		$(BIN)/coverage combine --quiet && $(BIN)/coverage report && exit $$status

mutate: $(VENV)/.installed ## see which small changes to the code no test notices; goes on where it stopped: MUTATE=db/payments/settlement.py
	$(BIN)/python -m tests.mutation $(MUTATE)

chaos: $(VENV)/.installed ## kill, cut off, empty and restore everything for some minutes; nothing may be lost: CHAOS="--minutes 30"
	$(BIN)/metering chaos $(CHAOS)

check: $(VENV)/.installed ## lint, format, types, import rules; the Lua too, where luacheck is
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.luacheck

docs: $(DOCS_VENV)/.installed ## build the pages into site/; a dead link or anchor fails
	$(DOCS_VENV)/bin/zensical build --clean --strict

dashboards: $(VENV)/.installed ## make Grafana's dashboards in deploy/grafana/dashboards/ anew from their code
	$(BIN)/python -m tests.monitoring.dashboards

format: $(VENV)/.installed ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed ## measure events per second from a filled stream to ack
	$(BIN)/metering bench

lock: $(VENV)/.installed ## resolve the dependencies anew (names, versions and hashes; no index addresses)
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --upgrade \
		-o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --upgrade \
		--extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --upgrade \
		-o requirements-docs.lock requirements-docs.in

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DOCS_VENV)/.installed: requirements-docs.lock
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.lock
	@touch $@

clean: ## remove what the targets above made, data of the embedded servers included
	rm -rf $(VENV) $(DOCS_VENV) .cache site mutants .coverage .metering .mypy_cache .ruff_cache .pytest_cache .hypothesis
