# One ritual: `make lint test`. Every target sets up what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos fuzz lint format proto docs lock bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements/dev.lock pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedsvc needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

setup: $(STAMP) ## create .venv with everything in it

demo: $(STAMP) ## real signed deliveries to local inboxes, with a summary
	@$(BIN)/fedsvc demo

test: $(STAMP) ## every test
	@$(BIN)/python -m pytest

fuzz: $(STAMP) ## 20,000 generated calls of a real server, and its parsers under atheris
	@cd tests && ../$(BIN)/python -m fuzz $(if $(CALLS),--calls $(CALLS)) $(if $(SEED),--seed $(SEED))

chaos: $(STAMP) ## kill, restart and cut everything for SECONDS (600) under load; lost 0, or it fails
	@cd tests && ../$(BIN)/python -m chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

lint: $(STAMP) ## ruff, strict types, import contracts, proto lint and drift, docs
	@$(BIN)/python tools/lint.py

format: $(STAMP) ## format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

proto: $(STAMP) ## regenerate the stubs of server and client
	@$(BIN)/python tools/proto.py

docs: $(STAMP) ## write docs/reference/ anew from the code
	@$(BIN)/python tools/docs.py

bench: $(STAMP) ## measure, on loopback, in about two minutes
	@$(BIN)/python -m benchmarks

lock: $(STAMP) ## resolve requirements/*.lock anew from pyproject.toml
	@$(BIN)/python tools/lock.py

clean: ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
