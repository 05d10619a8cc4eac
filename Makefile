# `make help` lists the commands. They all work in .venv, which make creates from the exact pins of the lock files and
# creates again when these change.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help repro verify compare cluster

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1	/' | expand -t 22

repro: $(READY)  ## rebuild all that params.yaml describes, show the results
	@scratchlm repro

verify: $(READY)  ## rebuild the last commit in a clone and compare all results
	scratchlm verify

cluster: $(VENV)/cluster  ## Ray, to train on several machines

$(VENV)/cluster: $(READY) requirements-cluster.lock
	@python -m pip install --disable-pip-version-check --quiet --no-deps --requirement requirements-cluster.lock
	@touch $@

BASE ?= origin/main
# DVC and the stages write to standard error, so that the table can go to a file: make --silent compare > table.md
# FAIL_IF=worse fails if a metric got worse; docs/compare.md has the other conditions
compare: $(READY)  ## build HEAD and BASE=origin/main; print what differs
	@revisions=$$(scratchlm build $(BASE) HEAD) && \
		scratchlm compare $$revisions --format markdown $(if $(FAIL_IF),--fail-if "$(FAIL_IF)")

# An environment works only in the folder that it was made in: its scripts name that
moved = $(shell [ ! -e $(1)/ready ] || grep -qF "$$(pwd -P)/$(1)/bin/" $(1)/bin/pip || echo moved)
.PHONY: moved

$(READY): requirements.lock requirements-nodeps.lock pyproject.toml $(call moved,$(VENV))
	$(make-environment)

# Nothing is cleared that make did not make. `ready` alone is of an older version
define clear-environment
@if [ -L $(@D) ]; then echo "$(@D) is a link to $$(readlink $(@D)); remove the link, then make creates an environment" >&2; \
	exit 1; fi
@if [ -e $(@D) ] && [ ! -e $(@D)/made-by-make ] && [ ! -e $(@D)/ready ]; then \
	echo "$(@D) was not made by make, which would delete it; rename it, then run make again" >&2; exit 1; fi
@$(PYTHON) -m venv --clear $(@D)
@touch $(@D)/made-by-make
endef

# pip's lines as one that counts: pip itself shows a bar for each package
FETCHED = /^Collecting/ {printf "\r\033[K  %d of %d packages found", ++found, total} \
	/^ *(Downloading|Using cached).*whl / && !/metadata/ {printf "\r\033[K  %d of %d packages fetched: %s %s %s", ++n, total, $$(NF-2), $$(NF-1), $$NF} \
	/^Installing/ {printf "\r\033[K  all packages fetched; installing"} {fflush()} END {print ""}

# Install every pin of the first file, then the pins of the second file with --no-deps. pyproject.toml has the commands
define make-environment
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}; call make PYTHON=python3.12, for example")'
$(clear-environment)
@echo "Installing $$(grep -c == $(word 1,$^)) packages into $(@D), once: several minutes and about 4 GB of disk"
@pip="$(@D)/bin/python -m pip install --disable-pip-version-check --requirement $(word 1,$^)"; \
	if [ -t 1 ]; then set -o pipefail; $$pip | awk -v total=$$(grep -c == $(word 1,$^)) '$(FETCHED)'; else $$pip --quiet; fi
@$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --requirement $(word 2,$^) --editable .
@touch $@
endef

# The targets for work on scratchlm itself; a project that `scratchlm init` makes has none
-include development.mk
