# `make help` lists the targets. Everything a bare Debian 12 machine lacks is installed by them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export GPUOPS_CACHE ?= $(HOME)/.cache/gpuops
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: ## the pinned tools, in the cache, linked as .venv
	@tests/tools/venv "$(PYTHON)" requirements/dev.txt .venv

.PHONY: lock
lock: ## renew requirements/dev.txt from dev.in
	@tests/tools/lock "$(PYTHON)"

.PHONY: collection
collection: venv ## build and install the collection into build/collections
	@tests/tools/collection

.PHONY: demo
demo: venv ## a GPU node in a container, provisioned and proven (KUBELET=embedded|real)
	@tests/tools/demo up

.PHONY: demo-verify
demo-verify: venv ## verify the demo's node again
	@tests/tools/demo verify

.PHONY: demo-down
demo-down: ## remove the demo's node
	@tests/tools/demo down

.PHONY: demo-cluster
demo-cluster: venv ## a Kubernetes cluster of three nodes and 24 GPUs, provisioned as a fleet, with pods
	@tests/tools/demo-cluster up

.PHONY: demo-cluster-down
demo-cluster-down: ## remove the demo's cluster
	@tests/tools/demo-cluster down

.PHONY: test
test: venv ## every layer of tests; LAYERS="unit plugin" for some
	@tests/testbed/testbed engine
	@tests/tools/layers $(LAYERS)

.PHONY: lint
lint: venv ## ruff, mypy, ansible-lint, yamllint, shellcheck
	@tests/tools/lint

.PHONY: bench
bench: venv ## measure the plugin; prints a table, writes build/bench/*.json
	@python tests/bench/plugin_bench.py

.PHONY: bench-fleet
bench-fleet: venv ## measure provisioning by fleet size and forks; NODES="1 4 16", FORKS="2 5"
	@python tests/bench/fleet/fleet_bench.py

.PHONY: report-shots
report-shots: venv ## the fleet report's pictures in docs/, in headless Chromium (Debian's package, fetched when missing)
	@tests/tools/chromium >/dev/null
	@python tests/playbooks/report_shots.py

.PHONY: soak
soak: venv ## a day in an hour: 5,000 random faults, the list always comes to the truth (GPUOPS_SOAK_EVENTS, GPUOPS_SOAK_SEED)
	@GPUOPS_SOAK_EVENTS=$${GPUOPS_SOAK_EVENTS:-5000} python -m pytest -q -s tests/plugin/test_soak.py
	@GPUOPS_KILLS=$${GPUOPS_KILLS:-20} python -m pytest -q tests/nodes/test_runtime_role.py -k killed

.PHONY: clean
clean: ## remove what was built in this checkout (caches outside stay)
	rm -rf build .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
