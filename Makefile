# Penstock: `make run` starts the daemon, `make test` proves it. Both install what they need into .venv.

PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run demo test test-quick fuzz browser lint bench clean install uninstall

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is no Python from 3.11 up; name one: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run: $(VENV)/python setup.py pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[embedded,docs]'
	@touch $@

$(VENV)/test: $(VENV)/python setup.py pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

run: $(VENV)/run ## start the daemon with an embedded PostgreSQL on 127.0.0.1:8080
	@echo "Penstock starts on http://127.0.0.1:8080 (the first start indexes Python's documentation, a few seconds)."
	@echo "Try, from another terminal:"
	@echo "  $(BIN)/penstock call answer '{\"question\": \"How do I read a CSV file?\"}'"
	@echo "  curl --json '{\"text\": \"temporary file\", \"limit\": 3}' http://127.0.0.1:8080/v1/agents/search"
	@echo "  $(BIN)/penstock status"
	@exec $(BIN)/penstock serve --bind 127.0.0.1:8080

demo: $(VENV)/run ## start it, fire 10, 50 and 200 requests at once, print a table
	@$(BIN)/python -m bench.demo

test: $(VENV)/test browser ## run all tests, with real processes, PostgreSQL and a browser; as root it installs Chromium with apt-get
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

test-quick: $(VENV)/test ## run the tests without processes and sockets, in under a minute
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/property tests/sim tests/packaging/test_documents.py $(PYTEST)

fuzz: $(VENV)/test ## send a running daemon odd requests for SECONDS=300, others each time (or SEED=...)
	@FUZZ_SECONDS=$(or $(SECONDS),300) $(if $(SEED),FUZZ_SEED=$(SEED)) $(BIN)/python -m pytest -q -s -p no:cacheprovider \
		-o timeout=0 tests/integration/test_fuzz.py $(PYTEST)

browser:
	@for name in chromium chromium-browser google-chrome-stable google-chrome; do command -v $$name > /dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "Installing Chromium, in which the dashboard is tested."; \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium > /dev/null && exit 0; \
	fi; \
	echo "There is no Chromium here, so that the tests of the dashboard in a browser are skipped."

lint: $(VENV)/test ## ruff, mypy --strict (tests and benchmarks too), import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy -p penstock.daemon -p penstock.ipc -p penstock.workers -p bench -p tests
	@$(BIN)/lint-imports --no-cache

bench: $(VENV)/run ## measure, print tables (about ten minutes)
	@$(BIN)/python -m bench.run

install: ## as a service of this host, as root: PREFIX=/opt/penstock, DSN= of an existing PostgreSQL
	@PYTHON='$(PYTHON)' systemd/install.sh install

uninstall: ## take the service off this host again; configuration and data stay
	@systemd/install.sh uninstall

clean: ## remove what the other targets made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
