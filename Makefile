# Every target sets up the environment first; PYTHON is any Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help env demo miniature-checkpoints test torture lint bench bench-gpu docs versions lock

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

env:             ## set up .venv, unless it is up to date (after damage: make env OPTIONS=--reinstall)
	@$(PYTHON) tools/env.py $(OPTIONS)

demo: env        ## the whole pipeline on the embedded miniature -> results/demo/
	@$(BIN)/python tools/demo.py

miniature-checkpoints: env   ## train the demo's Step 1 checkpoints -> miniature/checkpoints/
	@$(BIN)/python tools/miniature_checkpoints.py

test: env        ## all tests
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadfile

MOMENTS ?= 100
torture: env     ## kills at MOMENTS=100 random moments, real Slurm, 5,000 damaged inputs: docs/reliability.md (hours)
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; code=0; \
	FRAMEKD_FUZZ=200 $(BIN)/python -m pytest tests/unit/test_fuzz.py -n 2 --dist load || code=1; \
	FRAMEKD_LONG=1 $(BIN)/python -m pytest tests/cluster tests/workflow/test_published_table.py || code=1; \
	$(BIN)/python tools/torture.py --moments $(MOMENTS) || code=1; \
	if command -v slurmctld >/dev/null; then \
	  $(BIN)/python tools/torture.py --moments $$(( $(MOMENTS) / 4 )) --through slurm || code=1; fi; exit $$code

lint: env        ## style, types, import layers, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile workflow/rules
	@$(BIN)/lint-imports
	@$(BIN)/mypy
	@$(BIN)/python -m framekd.generated --check

bench: env       ## run the benchmarks; each prints a table of ratios
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; for b in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/*.py)); do echo "== $$b"; $(BIN)/python $$b || exit 1; done

bench-gpu: env   ## what the GPU does with models and steps -> results/bench-gpu.md, .json (10 minutes)
	@$(BIN)/python benchmarks/gpu.py $(OPTIONS)

docs: env        ## write the files that are generated from framekd.config
	@$(BIN)/python -m framekd.generated

versions: env    ## update the code versions of the stages
	@$(BIN)/python -m framekd.versions

lock: env        ## refresh requirements.lock within the bounds of pyproject.toml
	@$(BIN)/uv pip compile --quiet pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-annotate --no-header -o requirements.lock
