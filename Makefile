# Everything starts here, on a machine that has Python 3.11–3.13 and make: `make demo`, `make test`.
# The environment lies in .venv; a second call finds it ready.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

UV_VERSION := 0.13.9
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) >/dev/null 2>&1 && $(name) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $(name))))
UV := $(shell command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1 && echo uv || echo .venv-uv/bin/uv)
BIN := .venv/bin
LOCK := $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11
EXTRAS := --extra cpu --extra scann --extra datasets --extra train --extra evaluate --extra serve --extra postgresql --extra provenance --extra telemetry --extra demo

DEMO_DIR ?= .demo
# Arguments for pytest or the benchmarks: make test ARGS='tests/storage -x'.
ARGS ?=

export UV_PYTHON_DOWNLOADS := never
# Where Python may not write bytecode, every worker would compile all of its imports anew.
export UV_COMPILE_BYTECODE := 1
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0
export DEMO_DIR

.PHONY: help demo demo-stop test test-slow test-k8s lint fmt bench gpu-check lock clean
help:  ## What can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## */  make \1\t/p' Makefile | expand -t 16

demo: .venv/.installed  ## Emoji database from scratch, searched, painted from and served; sheets in .demo/sheets
	@cluster/demo.sh

demo-stop:  ## Ends the page and the API that the demo left running
	@REMEMBRANDT_HOME="$(DEMO_DIR)" cluster/serve.sh down

test: .venv/.installed-dev  ## Tests, about half an hour on two cores; ARGS='…' goes to pytest
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: .venv/.installed-dev  ## The long ones: many kills over file and S3, plans against measured rates
	$(BIN)/python -m pytest -m slow $(ARGS)

test-k8s: .venv/.installed-dev  ## k8s/ on a real API server with the real KubeRay operator; needs Go, builds 10 minutes once
	tests/k8s/kit/build.sh
	$(BIN)/python -m pytest -m kubernetes tests/k8s $(ARGS)

lint: .venv/.installed-dev  ## Style, types, and the order of the rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: .venv/.installed-dev  ## Formats the code and mends what ruff can
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

bench: .venv/.installed-dev .venv-peers/.installed  ## Benchmarks beside their peers, into tests/benchmarks/*.md; ARGS='search' for one
	$(BIN)/python -m tests.benchmarks $(ARGS)

gpu-check: .venv/.installed-dev  ## On a machine with a CUDA GPU: speed and memory of the large models, into tests/benchmarks/gpu.md
	$(BIN)/python -m tests.benchmarks.gpu_check $(ARGS)

lock: $(filter-out uv,$(UV))  ## Resolves the dependencies anew into requirements*.lock
	$(LOCK) --upgrade $(EXTRAS) pyproject.toml -o requirements.lock
	$(LOCK) --constraints requirements.lock $(EXTRAS) --group dev pyproject.toml -o requirements-dev.lock
	version=$$(sed -n 's/^faiss-cpu==\([^ ]*\).*/\1/p' requirements.lock); echo "faiss-gpu==$$version" | $(LOCK) --upgrade --no-annotate \
	  --constraints requirements.lock --no-emit-package numpy --no-emit-package packaging - -o cluster/faiss-gpu.lock
	printf 'hatchling>=1.27\nuv==$(UV_VERSION)\n' | $(LOCK) --upgrade --no-annotate - -o cluster/build.lock

clean:  ## Removes the environment, caches, builds and the demo
	cluster/local.sh down
	cluster/serve.sh down
	rm -rf .venv .venv-uv .venv-peers .demo .cache build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf cluster/elasticsearch/target
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv-uv/bin/uv:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11, 3.12 or 3.13 is needed; name one with make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/bin/python: | $(filter-out uv,$(UV))
	@test -n "$(PYTHON)" || { echo "error: Python 3.11, 3.12 or 3.13 is needed; name one with make PYTHON=/path/to/python" >&2; exit 2; }
	$(UV) venv --quiet --python $(PYTHON) .venv

# The development environment serves users too, so each stamp vouches for the smaller set as well.
.venv/.installed: requirements.lock pyproject.toml | .venv/bin/python
	$(UV) pip sync --quiet --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@rm -f .venv/.installed-dev
	@touch $@

.venv/.installed-dev: requirements-dev.lock pyproject.toml | .venv/bin/python
	$(UV) pip sync --quiet --python $(BIN)/python requirements-dev.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch .venv/.installed $@

# What the benchmarks compare with, in environments of its own: it needs other versions than we do.
.venv-peers/.installed: tests/benchmarks/peers-clip.txt tests/benchmarks/peers-bm25.txt | .venv/.installed-dev
	for peer in clip bm25; do \
	  $(UV) venv --quiet --clear --python $(BIN)/python .venv-peers/$$peer; \
	  $(UV) pip sync --quiet --python .venv-peers/$$peer/bin/python tests/benchmarks/peers-$$peer.txt; \
	done
	@touch $@
