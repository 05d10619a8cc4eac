# `make help` lists the commands. They all work in .venv, which make creates from the exact pins of the lock files and
# creates again when these change.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
BENCH := .venv-bench
DOCS := .venv-docs
AUDIT := .venv-audit
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help repro verify compare cluster cluster-check test test-quick test-network slow soak torture golden gpu-check exact-arm64 check audit bench docs

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1	/' | expand -t 22

repro: $(READY)  ## rebuild all that params.yaml describes, show the results
	@scratchlm repro

verify: $(READY)  ## rebuild the last commit in a clone and compare all results
	scratchlm verify

# Two tests at a time, so threads that wait must not take the other's core, and tests are compiled once for both
PYTEST := OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= python -m pytest --numprocesses 2

test: $(READY)  ## all tests but the slow ones, also in clones: minutes
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-quick: $(READY)  ## the unit tests but the long ones, without DVC: a minute
	$(PYTEST) -m "not long and not slow and not gpu" tests/unit

cluster: $(VENV)/cluster  ## Ray, to train on several machines

$(VENV)/cluster: $(READY) requirements-cluster.lock
	@python -m pip install --disable-pip-version-check --quiet --no-deps --requirement requirements-cluster.lock
	@touch $@

cluster-check: cluster  ## the tests on two Ray nodes of this machine: two minutes
	python -m pytest tests/cluster

test-network: $(READY)  ## tests on real data, of SCRATCHLM_MIRROR or the network
	python -m pytest tests/network

# Those on real data: python -m pytest -m slow tests/network
slow: $(READY)  ## the tests that compute for minutes
	python -m pytest -m slow

soak: $(READY)  ## edits, kills, lost files and builds in random order
	python -m tests.pipeline.soak

torture: $(READY)  ## 40 kills of `dvc repro`; each build must be the same bytes
	python -m tests.pipeline.kills --kills 40

golden: $(READY)  ## the golden results of precision exact: half a minute
	PYTHONPATH=src:. python -m tests.golden

# In no environment of its own: a machine with a card brings its torch. K=bits runs the tests with that in their name
gpu-check:  ## the tests on an NVIDIA card, with the packages of python3
	@python3 -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA device here; run this where there is one")'
	PYTHONPATH=src:. python3 -m pytest -m gpu $(if $(K),-k "$(K)") $$(grep -rl "mark.gpu" tests/unit)

exact-arm64:  ## the golden results on an emulated ARM64; Debian, minutes
	tools/exact_arm64.sh

check: $(READY)  ## format, lint, types and architecture
	ruff format --check
	ruff check
	mypy
	python -m pytest tests/unit/test_architecture.py

audit: $(AUDIT)/audited  ## known vulnerabilities of every pinned package, from PyPI

.PHONY: $(AUDIT)/audited
$(AUDIT)/audited:
	$(clear-environment)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet pip-audit
	@for lock in requirements*.lock; do \
		$(@D)/bin/pip-audit --progress-spinner off --no-deps --disable-pip --requirement $$lock || exit 1; done

# ROW=decode_1_float32 measures that row alone
bench: $(BENCH)/ready  ## measure: other implementations, the pipeline, its growth
	@export PATH="$(CURDIR)/$(BENCH)/bin:$$PATH" && python -m benchmarks.run $(addprefix --row ,$(ROW)) \
		$(if $(ROW),,&& python -m benchmarks.pipeline && python -m benchmarks.scaling && python -m benchmarks.scaling_corpus \
		&& python -m benchmarks.windows && python -m benchmarks.load && python -m benchmarks.serve)

docs: $(READY) $(DOCS)/ready  ## the documentation, into site/: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

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

# A separate environment, so that the packages of the benchmarks cannot affect results
$(BENCH)/ready: requirements.lock benchmarks/requirements.lock $(call moved,$(BENCH))
	$(make-environment)

# Separate, too: the packages that build the pages cannot affect results
$(DOCS)/ready: requirements-docs.lock $(call moved,$(DOCS))
	$(clear-environment)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

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
