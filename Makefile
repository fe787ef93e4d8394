# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help run test lint demo crash losses fuzz bench config system clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Berm needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "cannot make .venv: on Debian, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

run: .venv/installed ## start a node: MQTT on 127.0.0.1:1883, data in ./data
	@exec $(BIN)/berm run --hints

system: # Debian packages that some tests drive; without them those tests skip and say so
	@sh tests/system-packages.sh

lint: .venv/tested ## ruff, mypy --strict, import directions, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m berm.reference --check config/berm.toml docs/settings.md

config: .venv/tested ## write config/berm.toml, docs/settings.md and docs/conformance.md anew from what they are made of
	$(BIN)/python -m berm.reference config/berm.toml docs/settings.md
	$(BIN)/python -m tests.conformance.page

test: .venv/tested system lint ## lint, then every test
	$(BIN)/python -m pytest

demo: .venv/tested system ## an edge node, a cloud, an outage, a SIGKILL, and a ledger
	@$(BIN)/python -m bench.demo

crash: .venv/tested system ## SIGKILL under load, many times; ROUNDS=100 by default; POWER=1: power cuts
	$(BIN)/python -m tests.crash.kill --rounds $(or $(ROUNDS),100) $(if $(POWER),--power)

losses: .venv/tested system ## what Berm, mosquitto and amqtt lose by SIGKILL and by power cuts; ROUNDS=30 by default
	$(BIN)/python -m tests.crash.compare --rounds $(or $(ROUNDS),30) --power $(or $(ROUNDS),30)

fuzz: .venv/tested ## mistreat the decoder, the broker, and a live node, in turn; MINUTES=5 by default
	$(BIN)/python -m tests.fuzz.run --minutes $(or $(MINUTES),5)

bench: .venv/tested system ## Berm beside mosquitto and amqtt, in one run
	$(BIN)/python -m bench.compare

clean: ## remove the environment and caches, never ./data
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis bench/build
