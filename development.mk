# The targets for work on scratchlm itself: tests, checks, benchmarks, documentation. The Makefile includes this file.

BENCH := .venv-bench
DOCS := .venv-docs
AUDIT := .venv-audit

.PHONY: test test-quick cluster-check test-network slow soak torture golden gpu-check exact-arm64 check audit bench docs

# Two tests at a time, so threads that wait must not take the other's core, and tests are compiled once for both
PYTEST := OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= python -m pytest --numprocesses 2

test: $(READY)  ## all tests but the slow ones, also in clones: minutes
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-quick: $(READY)  ## the unit tests but the long ones, without DVC: a minute
	$(PYTEST) -m "not long and not slow and not gpu" tests/unit

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

# A separate environment, so that the packages of the benchmarks cannot affect results
$(BENCH)/ready: requirements.lock benchmarks/requirements.lock $(call moved,$(BENCH))
	$(make-environment)

# Separate, too: the packages that build the pages cannot affect results
$(DOCS)/ready: requirements-docs.lock $(call moved,$(DOCS))
	$(clear-environment)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@
