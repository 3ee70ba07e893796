# Everything happens in .venv; PYTHON chooses what it is made from (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin
DATA ?= cifar10
MINUTES ?= 14
# A file's tests share what they set up. PYTEST_XDIST_AUTO_NUM_WORKERS is the number of processes if not that of the cores.
PARALLEL := -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help train test test-slow gpu lint type faults setup setup-dev clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' Makefile

train: setup ## train a small ResNet, for ten minutes at most on two CPU cores
	$(BIN)/python train.py --model resnet --data auto --epochs 3 --output-dir runs/first

test: setup-dev ## the fast tests
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: setup-dev ## the tests with several real processes
	$(BIN)/python -m pytest -m slow $(PARALLEL)

gpu: setup-dev ## tests and measurements on a GPU, MINUTES=14 in total: DATA=FOLDER, SCRIPT=airbench94_muon.py; again for what is left
	$(BIN)/python benchmarks/gpu.py --minutes $(MINUTES) --data $(DATA) $(if $(SCRIPT),--script $(SCRIPT))

faults: setup-dev ## 1,000 faults of file operations, and twelve of processes: an hour; needs gcc
	$(BIN)/python benchmarks/faults.py && $(BIN)/python benchmarks/faults.py --soak 50 && $(BIN)/python benchmarks/faults.py --ranks 12

lint: setup-dev ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

type: setup-dev ## mypy
	$(BIN)/mypy

setup: .venv/installed ## the environment .venv, with what requirements.txt names
setup-dev: .venv/installed-dev

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; use make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean: ## remove the environment, not data or runs
	rm -rf .venv
