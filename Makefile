# `make help` lists the commands. All of them work in .venv, which is made from the exact pins of the lock files
# once, and again only when these change.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
BENCH := .venv-bench
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help repro verify compare test slow torture check bench

help:  ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1	/' | expand -t 16

repro: $(READY)  ## rebuild everything that params.yaml describes, then show the results
	@scratchlm repair
	dvc repro
	@echo
	@scratchlm results
	@echo
	@echo "Next: open data/report.html; change params.yaml and run again; compare with 'scratchlm compare main'."

verify: $(READY)  ## rebuild the last commit in a clean clone and compare every output and metric
	scratchlm verify

test: $(READY)  ## the fast test suite, the sample pipeline in a clone included
	python -m pytest

slow: $(READY)  ## the tests that compute for minutes
	python -m pytest -m slow

torture: $(READY)  ## kill dvc repro 40 times at random instants; every build must still give the same bytes
	python -m tests.pipeline.kills --kills 40

check: $(READY)  ## format, lint, types and the laws of the house
	ruff format --check
	ruff check
	mypy
	python -m pytest tests/test_laws.py

# ROW=decode_1_float32 measures only that
bench: $(BENCH)/ready  ## side-by-side measurements against other implementations, the pipeline's seconds, curves of cost
	@export PATH="$(CURDIR)/$(BENCH)/bin:$$PATH" && python -m benchmarks.run $(addprefix --row ,$(ROW)) \
		$(if $(ROW),,&& python -m benchmarks.pipeline && python -m benchmarks.scaling && python -m benchmarks.scaling_corpus)

BASE ?= origin/main
# To standard error goes what DVC and the stages say, so that the table can be sent to a file: make --silent compare > x
compare: $(READY)  ## what is here against another revision, BASE=origin/main, both built before: a Markdown table
	@base=$$(scratchlm build $(BASE)) && dvc repro $$(dvc remote default >/dev/null 2>&1 && echo --pull) >&2 && \
		scratchlm compare "$$base" --format markdown

$(READY): requirements.lock requirements-nodeps.lock
	$(make-environment)

# Apart, so that what only the measurements need is not in the environment that results come from
$(BENCH)/ready: requirements.lock benchmarks/requirements.lock
	$(make-environment)

# With every pin of the rule's first file, then those of its second one without what they say they need
define make-environment
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}; call make PYTHON=python3.12, for example")'
$(PYTHON) -m venv --clear $(@D)
$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --requirement $(word 1,$^)
$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --requirement $(word 2,$^) --editable .
@touch $@
endef
