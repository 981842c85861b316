# Requires Python 3.11 or newer, and make. Everything else is installed into $(VENV).
# Another environment: `make demo VENV=/path/to/venv PYTHON=python3.12`.

VENV ?= .venv
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do $$name -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$name && break; done)
WORKERS ?= 2
ARGS ?=

# `make demo PRESET=toy-quick` (a name in presets/, or a file) runs in a copy of the project; params.yaml and data/ are not changed.
PRESET ?= params.yaml
RUN := $(if $(filter params.yaml,$(PRESET)),.,.scratch/demo-$(basename $(notdir $(PRESET))))
CATS ?= 3000
# Outside a git repository, as in an unzipped download, DVC must be told so.
READY_DVC = { [ -d .dvc ] || dvc init --quiet --no-scm; } && { [ -e .git ] || dvc config --quiet --local core.no_scm true; }

export PATH := $(abspath $(VENV))/bin:$(PATH)
export DO_NOT_TRACK = true
export DVC_NO_ANALYTICS = 1
export MLFLOW_DISABLE_TELEMETRY = true
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore

.PHONY: help install demo test lint format ui bench
.DEFAULT_GOAL := help

help:  ## print this list
	@sed -n 's/^\([a-z]*\):.*##/\1:/p' Makefile | awk -F': ' '{ printf "make %-9s %s\n", $$1, $$2 }'

install: $(VENV)/.installed  ## install into .venv with the exact versions of constraints.txt (a few GB, a few minutes)
	@$(READY_DVC)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c '$(NEW_ENOUGH)' || { echo "Darkroom requires Python 3.11 or newer. Give its path: make install PYTHON=/path/to/python3.12"; exit 1; }
	@[ -x $(VENV)/bin/pip ] || $(PYTHON) -m venv --clear $(VENV) || { echo "Python's venv module is incomplete here (on Debian: apt-get install python3-venv)."; exit 1; }
	@echo "Installing into $(VENV). The first time this takes a few minutes."
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## draw toy cats (unless data/raw has photos), train, evaluate, register
	@if [ $(RUN) != . ]; then \
		echo "$(PRESET) runs in a copy of the project, $(RUN); your params.yaml and data/ are not changed."; \
		mkdir -p $(RUN)/data && cd $(RUN) && rm -rf darkroom stages flows && cd - >/dev/null && \
		cp -R darkroom stages flows dvc.yaml .dvcignore prefect.toml $(RUN)/ && \
		darkroom params $(PRESET) > $(RUN)/params.yaml.tmp && mv $(RUN)/params.yaml.tmp $(RUN)/params.yaml && \
		cd $(RUN) && $(READY_DVC); \
	fi
	@cd $(RUN) && if [ -n "$$(ls -A data/raw 2>/dev/null)" ]; then \
		echo "data/raw is not empty: training on its photos."; \
	else \
		echo "data/raw is empty: drawing toy cats." && rm -rf data/raw && \
		darkroom demo-data data/raw.new --num-cats $(CATS) && mv data/raw.new data/raw; \
	fi
	cd $(RUN) && dvc repro
	@echo
	@echo "Samples    $(RUN)/data/report/pictures"
	@echo "Report     $(RUN)/data/report/report.html"
	@echo "Draw more  $(VENV)/bin/darkroom sample --model $(RUN)/data --prompt 'a sitting orange cat with green eyes, at night' --out cat.png"
	@echo "All runs   make ui$(if $(filter .,$(RUN)),, PRESET=$(PRESET))"

test: install  ## run the tests as CI does; `make test ARGS=--run-slow` includes the slow ones
	pytest -n $(WORKERS) $(ARGS)

lint: install  ## check with ruff and mypy
	ruff check .
	ruff format --check .
	mypy

format: install  ## sort imports and format
	ruff check --fix .
	ruff format .

ui: install  ## serve the pages of MLflow and Prefect on loopback until Ctrl-C
	@cd $(RUN) && python -m flows.ui

bench: install  ## measure speed as ratios; docs/benchmarks.md has measured numbers
	python -m benchmarks
