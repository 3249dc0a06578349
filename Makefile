# Every target needs only Python 3.10 or newer and make. The first one to run sets up .venv in this folder; that is done
# again only when pyproject.toml or constraints.txt change. Another Python: make PYTHON=python3.12 …
PYTHON ?= python3
PROMPT ?= a dog on a red background
PROFILE ?= $(or $(COURSE_PROFILE),cpu)
export PROMPT
export JUPYTER_PREFER_ENV_PATH = 1

BIN := .venv/bin
READY := .venv/ready
.DEFAULT_GOAL := help
.PHONY: help setup course lab sample test lint unit sync sync-check notebooks-test bench release grade clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## */  make \1~/p' Makefile | awk -F'~' '{ printf "%-24s%s\n", $$1, $$2 }'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) tools/bootstrap.py

setup: $(READY)  ## create .venv with everything in it (every other target does so by itself)

course: $(READY)  ## run the six notebooks in order and name the pictures drawn; PROFILE=smoke, cpu, long or gpu; FROM=03 goes on there
	@$(BIN)/python tools/run_course.py --profile $(PROFILE) $(if $(FROM),--first $(FROM))

lab: $(READY)  ## open JupyterLab on the first notebook
	@$(BIN)/jupyter lab notebooks/01_vae.ipynb

sample: $(READY)  ## draw a picture from checkpoints/: make sample PROMPT="a dog on a red background"
	@$(BIN)/python -m course_utils sample "$$PROMPT"

test: $(READY)  ## everything that CI runs: lint, types, tests, sync check, notebooks in the smoke profile
	@$(BIN)/python tools/check.py

lint: $(READY)  ## ruff and mypy
	@$(BIN)/python tools/check.py lint types

unit: $(READY)  ## the tests of the package and of the course's frame
	@$(BIN)/python tools/check.py unit

sync: $(READY)  ## fill the notebooks' code cells from the package
	@$(BIN)/python tools/sync.py

sync-check: $(READY)  ## fail if a notebook's code cells differ from the package
	@$(BIN)/python tools/check.py sync

notebooks-test: $(READY)  ## run all notebooks in the smoke profile and compare their marked outputs
	@$(BIN)/python tools/check.py notebooks

bench: $(READY)  ## speed and memory beside diffusers and transformers, about 8 minutes; QUICK=1 takes one
	@$(BIN)/python experiments/bench.py $(if $(QUICK),--quick)

release: $(READY)  ## write the student versions to release/; NOTEBOOKS="02_forward_process", DROP=jump,snr
	@$(BIN)/python teaching/release.py $(NOTEBOOKS) $(if $(DROP),--drop $(DROP))

grade: $(READY)  ## grade a folder with <student>/<notebook>.ipynb in it: make grade SUBMISSIONS=folder OPTIONS="--roster class.csv"
	@$(BIN)/python teaching/grade.py $(if $(SUBMISSIONS),"$(SUBMISSIONS)",$(error give the folder: make grade SUBMISSIONS=handed_in)) $(OPTIONS)

clean:  ## remove .venv and caches; keeps artifacts/, which holds what you trained
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build ./*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
