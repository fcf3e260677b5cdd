# `make help` lists what there is. A virtual environment is made in .venv at the first use and kept up to date with
# pyproject.toml. Variables: PYTHON (3.11 or newer), VENV, PIP_FLAGS (given to every `pip install`),
# ARGS (given to the command).
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
ARGS ?=
BIN := $(VENV)/bin
PROJECT := pyproject.toml setup.py

.DEFAULT_GOAL := help
.PHONY: help quickstart demo test lint types doctest docs bench gpu gpu-wheels build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed-quickstart ## set up, then make data, train, evaluate and write quickstart/report.html
	$(BIN)/speechclip-plus quickstart $(ARGS)

demo: $(VENV)/.installed-demo ## set up, then ask the quickstart's model in the browser
	$(BIN)/speechclip-plus demo $(ARGS)

test: $(VENV)/.installed-dev ## set up, then check style and run the tests (ARGS="-m ''" includes the slow ones)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pytest $(ARGS)
	$(BIN)/python -m pytest --doctest-modules -q --pyargs speechclip_plus speechclip_plus_cli

lint: $(VENV)/.installed-dev ## check style and formatting alone
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(VENV)/.installed-dev ## check types
	$(BIN)/python -m mypy

doctest: $(VENV)/.installed-dev ## run the examples in docstrings alone
	$(BIN)/python -m pytest --doctest-modules --pyargs speechclip_plus speechclip_plus_cli

docs: $(VENV)/.installed-docs ## build the documentation site into build/site
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/site

bench: $(VENV)/.installed-quickstart ## run the benchmarks, one after the other
	@set -e; for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file" $(ARGS); done

gpu: $(VENV)/.installed-dev ## measure on a GPU, or run the same at toy size on the CPU; writes runs/gpu/gpu.md
	$(BIN)/python benchmarks/gpu.py $(ARGS)

gpu-wheels: $(VENV)/.installed-dev ## collect in .wheels/ what benchmarks/gpu.py needs on a bare machine
	$(BIN)/python benchmarks/gpu.py --collect-wheels .wheels

build: $(VENV)/.installed-dev ## build the source distribution and the wheel into dist/
	$(BIN)/python -m build

clean: ## remove the virtual environment and what was built; quickstart/ and runs/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"error: Python 3.11 or newer is needed, {sys.executable} is {v.major}.{v.minor}; name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-quickstart: $(PROJECT) | $(BIN)/python
	@echo "Installing the package and what it needs (PyTorch is large: some minutes the first time)"
	$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[quickstart]"
	@touch $@

$(VENV)/.installed-demo: $(PROJECT) | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[quickstart,demo]"
	@touch $@ $(VENV)/.installed-quickstart

$(VENV)/.installed-docs: $(PROJECT) | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[docs]"
	@touch $@

$(VENV)/.installed-dev: $(PROJECT) | $(BIN)/python
	@echo "Installing the package and what its tests need (PyTorch is large: some minutes the first time)"
	$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[quickstart,dev]"
	@touch $@ $(VENV)/.installed-quickstart $(VENV)/.installed-demo
