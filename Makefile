# One command each: `make demo` to see it, `make test` to trust it, `make check` to keep it tidy. `make help` lists all.
#
# Settings: PYTHON (the interpreter), VENV (where the environment goes), EXTRAS (extras of pyproject.toml installed with it),
# ARGS (passed on to pytest or the demo), WORKERS (processes that share the tests; each takes about 2 GB).

VENV ?= .venv
EXTRAS ?= dev,server
ARGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help env demo test check build-nano clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

env: $(READY) ## create or update the environment in .venv

# The stamp makes a second call free; a change of what is installed makes it stale.
$(READY): pyproject.toml constraints-cpu.txt .ci/make-env
	PYTHON="$(PYTHON)" .ci/make-env "$(VENV)" "$(EXTRAS)"
	@touch $@

demo: $(READY) ## diagnose drawn example parts and write demo/report.html
	$(BIN)/dcr2ad demo $(ARGS)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(READY) ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build-nano: $(READY) ## build the embedded model into the cache
	$(BIN)/dcr2ad build-nano

clean: ## remove the environment and every cache; results under runs/ stay
	rm -rf $(VENV) build dist demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
