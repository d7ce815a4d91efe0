# `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos bench bench-gpu lint format envs

# The rules look for palimpsest on the path.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Threads that spin at a barrier take the core from their neighbours.
export OMP_WAIT_POLICY := PASSIVE
export PYTHON

INSTALLED := .venv/.installed
EVENTS := 100
SEED := 1

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED)  ## make .venv with the pinned packages (once; a few minutes)

$(INSTALLED): envs/constraints.txt envs/install.sh pyproject.toml
	@envs/install.sh
	@touch $@

demo: setup  ## run the demo study and show what was forgotten
	@snakemake --profile profiles/local
	@palimpsest show demo

test: setup  ## run all tests; those on a Slurm cluster need root, and tests/slurm/install.sh
	@OMP_NUM_THREADS=1 pytest -n 2

chaos: setup  ## torment a study on a Slurm cluster of its own: EVENTS=100 SEED=1
	@OMP_NUM_THREADS=1 python tests/slurm/chaos.py --events $(EVENTS) --seed $(SEED)

bench: setup  ## measure against what the field does, side by side, on this machine's CPU
	@OMP_NUM_THREADS=1 python benchmarks/bench.py

bench-gpu: setup  ## the same for one GPU: random 7B weights, nothing is downloaded
	@python benchmarks/bench.py gpu

lint: setup  ## check code and workflow for mistakes and form
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	snakemake --lint

format: setup  ## bring code and workflow into form
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules

envs: setup  ## render the conda and Apptainer files from envs/constraints.txt
	@python envs/render.py
