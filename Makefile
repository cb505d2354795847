# Everything runs in .venv, which `make setup` creates. The targets need only Python, pip and make.
PYTHON ?= python3
# To use a torch version other than the newest: make test TORCH=2.6
TORCH ?=
BIN := .venv/bin

.PHONY: help setup lint check test stress docs package audit demo bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: .venv/installed  ## install everything into .venv

.venv/installed: pyproject.toml
	@echo 'installing into .venv: about 6 GB, a few minutes'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --quiet --editable '.[harness,dev]' $(if $(TORCH),'torch==$(TORCH).*')
	touch $@

lint: setup  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rooms whose tests start no training; the mark `drawn` is for plots, which take long.
QUICK := tests/test_rooms.py tests/config tests/models tests/report tests/runs tests/schedulers

check: lint  ## lint, types and the quick tests, in a minute
	$(BIN)/python -m pytest -q -n auto -m "not drawn" $(QUICK)

test: lint  ## lint, types and all tests
	$(BIN)/python -m pytest -n auto

stress: setup  ## kill, stop and damage runs for ten minutes
	$(BIN)/python -m pytest -m stress -v

docs: setup  ## build the pages as a site in docs/_build/html; a warning fails
	$(BIN)/python -m pip install --quiet --quiet --editable '.[docs]'
	rm -rf docs/_build/html
	mkdir -p docs/_build/source
	$(BIN)/python -m sphinx -W --keep-going -q -c docs docs/_build/source docs/_build/html

package: setup  ## build wheel and sdist, check them, try the wheel in a bare environment
	rm -rf dist .bare
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv .bare
	.bare/bin/python -m pip install --quiet dist/*.whl
	cd dist && ../.bare/bin/python -I ../tests/lars/try_installed.py
	rm -rf .bare

audit: setup  ## check the installed packages for known vulnerabilities
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --skip-editable

demo: setup  ## sweep three batch sizes with both optimizers on synthetic data and print the table
	$(BIN)/python train.py -m +experiment=demo batch=64,256,1024 optimizer=sgd,lars

bench: setup  ## measure speed, compared with a reference loop
	$(BIN)/python -m scripts.bench

clean:  ## remove .venv and caches; results stay
	rm -rf .venv .bare dist docs/_build .mypy_cache .pytest_cache .ruff_cache *.egg-info
