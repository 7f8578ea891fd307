# `make` lists the targets. Each sets itself up first, in a virtual environment of its own for every version of Python:
# `make test PYTHON=python3.12` works beside `make test`.

PYTHON ?= python3
WORKERS ?= 2

PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv/$(or $(PYTHON_VERSION),missing)
INSTALLED := $(VENV)/.installed
PY := $(VENV)/bin/python

export PYTHONUTF8 = 1
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup demo test oldest plain test-torch docs notebooks export bench rerun lint pre-commit hooks clean

help: ## list the targets
	@echo 'make TARGET [PYTHON=python3.12] [WORKERS=2]'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: $(INSTALLED) ## make the virtual environment and install the package with its development tools

$(INSTALLED): settings.ini setup.py pyproject.toml tools/bootstrap.py git_rebasin/_native.h git_rebasin/_halves.c git_rebasin/matching/_assignment.c git_rebasin/symmetry/_gather.c
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no '$(PYTHON)' here; install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) tools/bootstrap.py $(VENV)
	@touch $@

demo: $(INSTALLED) ## train two networks, match and merge them: a table, a figure and a record in demo/
	@$(VENV)/bin/git-rebasin demo --data digits --seed 0 --out demo

test: $(INSTALLED) ## check everything that must hold (STEPS="lint tests": these only)
	@$(PY) -m tools.check --workers $(WORKERS) $(STEPS)

oldest: ## the core's tests, with the oldest versions of JAX and all others that settings.ini allows
	@$(PYTHON) tools/oldest.py .venv/$(PYTHON_VERSION)-oldest

plain: ## the demo after a plain install, without any extra
	@$(PYTHON) -m venv --clear .venv/$(PYTHON_VERSION)-plain
	@.venv/$(PYTHON_VERSION)-plain/bin/pip install --quiet .
	@.venv/$(PYTHON_VERSION)-plain/bin/git-rebasin demo --out demo/plain

test-torch: ## the tests of git_rebasin.torch, with PyTorch, torchvision, timm and transformers
	@$(PYTHON) tools/torch_tests.py .venv/$(PYTHON_VERSION)-torch

docs: $(INSTALLED) ## build the site into _docs/ (with quarto where it is installed, else with smalldocs)
	@$(PY) -m tools.docs

notebooks: $(INSTALLED) ## run the notebooks, store their outputs, and make all that is made of them (NB=path: these only)
	@$(PY) -m tools.generate
	@$(PY) -m tools.notebooks run --workers $(WORKERS) $(NB)
	@$(PY) -m tools.generate

export: $(INSTALLED) ## make modules, tests, README and badges from the notebooks, without running them
	@$(PY) -m tools.generate

bench: $(INSTALLED) ## run the benchmarks
	@$(if $(wildcard benchmarks/*.py),,echo 'bench: there are no benchmarks/*.py')
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(PY) $$script; done

rerun: $(INSTALLED) ## compute the cheap records of the experiments again and compare their bits (ONLY="mnist-mlp": these, MINUTES=20)
	@$(PY) -m tools.rerun $(if $(ONLY),--only $(ONLY)) --minutes $(or $(MINUTES),20)

lint: $(INSTALLED) ## check the style of notebooks, modules, tests and tools
	@$(PY) -m tools.check lint

pre-commit: $(INSTALLED) ## the checks of the git hook, which take seconds
	@$(PY) -m tools.check lint generated stored

hooks: ## run those checks before every commit
	@git config core.hooksPath .githooks
	@echo 'git now runs .githooks/pre-commit before a commit'

clean: ## remove what the targets made, but for the virtual environments in .venv/
	@rm -rf _docs _proc .quarto nbs/nbdev.yml build dist demo *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
