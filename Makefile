# From a fresh clone to results; needs only make and python3.

PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help demo test slow drills check style env clean photos

# Taken as typed and handed to the shell as variables: a pattern is full of $, ( and backslashes,
# which neither make nor the shell may read.
override PHOTOS := $(value PHOTOS)
override PATTERN := $(value PATTERN)
override TRAIN_LIST := $(value TRAIN_LIST)
override TEST_LIST := $(value TEST_LIST)
export PHOTOS PATTERN TRAIN_LIST TEST_LIST

help: ## say what there is to do (this)
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16
	@echo
	@echo "  make demo PHOTOS=folder       and on your own photographs; with these where needed:"
	@echo "    PATTERN='(?P<identity>.+)_cam(?P<camera>\\d+)'   what a file name tells"
	@echo "    TRAIN_LIST=train.txt TEST_LIST=val.txt          files in the folder with image names"

demo: photos env ## Vehicle-Diff on the drawn world, in minutes: tables and a report
	$(BIN)/ray-reid run vehicle_diff --profile miniature --run runs/demo
	@if [ -n "$$PHOTOS" ]; then \
	  set -- --data "$$PHOTOS"; \
	  [ -z "$$PATTERN" ] || set -- "$$@" --pattern "$$PATTERN"; \
	  [ -z "$$TRAIN_LIST" ] || set -- "$$@" --set "ingest.sources.0.train_list=$$TRAIN_LIST"; \
	  [ -z "$$TEST_LIST" ] || set -- "$$@" --set "ingest.sources.0.test_list=$$TEST_LIST"; \
	  printf '%s\n' "$(BIN)/ray-reid run baseline --profile photographs --run runs/photographs --replace $$*"; \
	  $(BIN)/ray-reid run baseline --profile photographs --run runs/photographs --replace "$$@"; \
	fi

test: env ## all tests but those marked slow, drill or gpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

slow: env ## the tests that take minutes: whole pipelines, and runs that are killed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow and not drill"

drills: env ## long proofs, which CI does not run: kills of every kind, hundreds of them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m drill

check: env ## lint, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

style: env ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

env: ## build .venv from requirements.lock (8 GB); instant when it is there
	@command -v "$(PYTHON)" >/dev/null || { echo "environment: there is no $(PYTHON); install Python 3.11 to 3.13" >&2; exit 1; }
	@"$(PYTHON)" cluster/environment.py

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find ray_reid jobs benchmarks cluster tests -name __pycache__ -prune -exec rm -rf {} +

photos:
	@[ -z "$$PHOTOS" ] || [ -d "$$PHOTOS" ] || { echo "demo: PHOTOS is not a folder: $$PHOTOS" >&2; exit 1; }
