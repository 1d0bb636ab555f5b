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
