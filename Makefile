# Everything runs in .venv, installed from requirements.lock and updated when the lock or pyproject.toml changes.
PYTHON ?= python3
PROFILE ?= quick

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What the tests compute is small: one thread is faster than several that wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1

# torch's own metadata pins these, with markers for the platforms that need them.
LEFT_TO_TORCH := ^(nvidia-|cuda-|triton==)

.DEFAULT_GOAL := help
.PHONY: help install reproduce extras test test-long test-oldest lint docs lab lock clean

define check_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "fa needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12" >&2; \
  exit 1; }
endef

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

install: $(STAMP) ## create .venv with everything that the figures, tests and documents need

reproduce: $(STAMP) ## every figure with PROFILE=quick (default), smoke, cpu or paper, into figures/PROFILE
	$(BIN)/fa reproduce --profile $(PROFILE)

extras: $(STAMP) ## the experiments beyond the paper, with PROFILE as above
	$(BIN)/fa reproduce extras --profile $(PROFILE)

test: lint ## lint, then the tests except the long ones
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not long" --numprocesses auto --maxprocesses 4 --dist worksteal

test-long: $(STAMP) ## the tests of a minute or more
	$(ONE_THREAD) $(BIN)/python -m pytest -m long

test-oldest: $(STAMP) ## the quick tests with the oldest allowed dependencies, in .venv-oldest; their warnings are not errors
	$(PYTHON) -m venv --clear .venv-oldest
	$(BIN)/python tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --disable-pip-version-check --constraint .venv-oldest/constraints.txt \
	  --editable '.[notebooks,theory,tensorboard,test]'
	$(ONE_THREAD) .venv-oldest/bin/python -m pytest -W default -m "not slow and not long" --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(STAMP) ## ruff (rules and format), mypy, and phrases that documents and docstrings avoid
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	! grep -nE "but for|that there is|there is not|is none\b|what is no |in place of|\btold\b|\bwhom?\b|nobody|somebody|whoever" \
	  -r --include='*.py' --include='*.md' --include='*.ipynb' README.md ARCHITECTURE.md CONTRIBUTING.md docs fa notebooks

docs: $(STAMP) ## the site: tutorial, guide, results, executed notebooks, API reference; into build/site
	$(ONE_THREAD) $(BIN)/python -m sphinx --keep-going -q -E -W -c docs -d build/doctrees . build/site

lab: $(STAMP) ## open JupyterLab on the notebooks; git then ignores their outputs
	! git rev-parse --git-dir >/dev/null 2>&1 || git config filter.notebook.clean 'python3 notebooks/strip.py'
	$(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

lock: ## new .venv from pyproject.toml's ranges; its versions become requirements.lock
	$(check_python)
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[all]'
	$(BIN)/python -m pip check
	{ echo "# Written by 'make lock': the tested versions; what torch pins for each platform is left to torch."; \
	  $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | grep -ivE '$(LEFT_TO_TORCH)'; \
	} > requirements.lock.new
	mv requirements.lock.new requirements.lock
	touch $(STAMP)

clean: ## remove .venv and all caches; figures and records stay
	rm -rf $(VENV) .venv-oldest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# The stamp is touched last, so that an interrupted installation is taken up again. setuptools comes with the lock:
# without build isolation nothing else is downloaded for the project itself.
$(STAMP): requirements.lock pyproject.toml
	$(check_python)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
