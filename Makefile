# Two commands do everything on a fresh machine: `make train` and `make test`. Both set up .venv first if need be.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
PY := .venv/bin/python
ARGS ?=
# Shapes and types are checked everywhere in the slow tests; in the fast ones, where most numbers are.
CHECKED := pmf_lightning.objectives,pmf_lightning.models,pmf_lightning.optim,pmf_lightning.sampling,pmf_lightning.data

.PHONY: help train test test-slow format lint docs docs-serve clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

train: .venv/ready  ## train pMF on the bundled digits (ARGS="seed=1 steps=300" adds overrides)
	$(PY) -m pmf_lightning.train $(ARGS)

test: .venv/ready  ## run the tests, in parallel on all cores
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal -m "not slow" \
		--jaxtyping-packages=$(CHECKED),beartype.beartype $(ARGS)

test-slow: .venv/ready  ## run those above 2 processor seconds: kills, several processes, whole pipelines
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal -m slow $(ARGS)

format: .venv/ready  ## format the code and mend what ruff can mend
	$(PY) -m ruff format . && $(PY) -m ruff check --fix .

lint: .venv/ready  ## check format and style
	$(PY) -m ruff format --check . && $(PY) -m ruff check .

docs: .venv/ready  ## build the site into site/, with no warning allowed
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

docs-serve: .venv/ready  ## serve the site at http://127.0.0.1:8000 and build it again at every change
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve

clean:  ## remove the environment
	rm -rf .venv

# Installed again when the dependencies change; 3-5 minutes, most of them torch.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
