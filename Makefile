# `make compare` needs Python 3.11 to 3.13 and make, nothing else; PYTHON=... picks another interpreter.
PYTHON ?= python3
# Where torch comes from, beside the package index; CPU_TORCH is an index of builds without CUDA.
TORCH_INDEX ?=
CPU_TORCH := https://download.pytorch.org/whl/cpu
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help compare sweep bench test test-slow test-slurm lint links format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12
	@echo 'ARGS="..." is passed on to the command, e.g. make compare ARGS="platform=rtx4090_ddr5"'

compare: .venv/base ## compare all policies in the simulator (installs the base packages first, no torch)
	$(BIN)/dali compare $(ARGS)

sweep: .venv/sweep ## the paper's evaluation and beyond, on all cores; goes on where it was stopped
	$(BIN)/dali sweep experiment=paper hydra/launcher=joblib $(ARGS)

bench: .venv/dev ## measure the speed of simulator and planner
	$(BIN)/dali bench $(ARGS)

# Each process compiles the kernels once if none are cached, so more than a few cost more than they save.
test: .venv/dev ## run all tests
	$(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile $(ARGS)

test-slow: .venv/dev ## run the tests that take minutes
	$(BIN)/pytest -m slow $(ARGS)

test-slurm: .venv/dev ## test sweeps on a Slurm of one node (needs root and: apt-get install slurm-wlm munge)
	tests/slurm/one_node.sh $(BIN)/pytest -m slurm tests/slurm $(ARGS)

lint: .venv/dev links ## style, formatting, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd .links && $(CURDIR)/$(BIN)/lint-imports --config ../pyproject.toml

# The folders as the package they are installed as: checkers and editors follow links, an editable install's map they cannot.
links:
	@mkdir -p .links/dali
	@for part in dali/*.py dali/py.typed dali/testing conf experiments policies runtime sim traces; do \
	  ln -sfn "$(CURDIR)/$$part" ".links/dali/$$(basename $$part)"; done

format: .venv/dev ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, caches and results
	rm -rf .venv .links build dist *.egg-info outputs .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment: the base packages, which `dev` extends.
.venv/base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "dali-moe needs Python 3.11 to 3.13, found $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing the base packages into .venv (about 210 MB to download)"
	$(PIP) --editable .
	@touch $@

.venv/sweep: .venv/base
	$(PIP) --editable '.[sweep]'
	@touch $@

.venv/dev: .venv/base
	@echo "Installing torch, transformers and the test tools into .venv."
	@echo "On Linux the index's torch brings CUDA, about 3 GB to download, if no torch is there."
	@echo "Without a GPU about 300 MB do: make $(MAKECMDGOALS) TORCH_INDEX=$(CPU_TORCH)"
	$(PIP) $(addprefix --extra-index-url ,$(TORCH_INDEX)) --editable '.[dev]'
	@touch $@
