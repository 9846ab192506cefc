# One ritual: `make lint test`. Every target sets up what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := build/peers
SECONDS ?= 600
# An environment that could not be finished, as on Debian without python3-venv, has a Python and no pip.
HAS_PIP = $(1)/python -c 'import pip' 2>/dev/null

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos fuzz lint format proto docs lock dist audit snapshot release next bench bench-smoke \
  image chart clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements/dev.lock pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedsvc needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	@$(call HAS_PIP,$(BIN)) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

setup: $(STAMP) ## create .venv with everything in it

demo: $(STAMP) ## real signed deliveries to local inboxes, with a summary
	@$(BIN)/fedsvc demo

# Modules are compiled once, by whoever is first, also where the environment forbids to keep what was compiled.
test: export PYTHONDONTWRITEBYTECODE =
test: $(STAMP) ## every test
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not alone"
	@$(BIN)/python -m pytest -m alone $$(grep -rl --include='test_*.py' 'mark\.alone' tests)

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
	@$(BIN)/python -m tools.docs

dist: $(STAMP) ## build what is published, twice, and try it in empty environments
	@$(BIN)/python tools/dist.py

audit: $(STAMP) ## known vulnerabilities of what is locked
	@$(BIN)/python tools/audit.py

snapshot: $(STAMP) ## write releases/VERSION/ anew, while nothing is released
	@$(BIN)/python -m tools.release snapshot

release: $(STAMP) ## make this checkout release VERSION=X.Y.Z
	@$(BIN)/python -m tools.release cut $(VERSION)

next: $(STAMP) ## set VERSION=X.Y.Z as the version that comes
	@$(BIN)/python -m tools.release next $(VERSION)

# Other queues and HTTP clients, in an environment of their own: they hold libraries of ours back.
$(PEERS)/.installed: requirements/bench.lock
	@$(call HAS_PIP,$(PEERS)/bin) || $(PYTHON) -m venv $(PEERS)
	@echo "Installing queues and HTTP clients of others into $(PEERS) ..."
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.lock
	@touch $@

bench: $(STAMP) $(PEERS)/.installed ## measure everything of docs/performance.md, on loopback
	@$(BIN)/python -m benchmarks.peers.node
	@$(BIN)/python -m benchmarks

bench-smoke: $(STAMP) ## a minute: fails if something became grossly dearer than benchmarks/guard says
	@$(BIN)/python -m benchmarks.guard

lock: $(STAMP) ## resolve requirements/*.lock anew from pyproject.toml
	@$(BIN)/python tools/lock.py

image: $(STAMP) ## build the container image on BASE (the pinned one, or local), and deliver with it
	@$(BIN)/python -m tools.image $(if $(BASE),--base $(BASE)) && cd tests && ../$(BIN)/python -m image

chart: $(STAMP) ## render the chart with many values; schemas and policies for all of it, compose file and Dockerfile
	@$(BIN)/python -m pytest -q tests/deploy && cd tests && ../$(BIN)/python -m deploy

clean: ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
