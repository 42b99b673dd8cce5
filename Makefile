# `make demo` and `make test` do everything on a fresh machine with Python 3.10 or newer.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(shell command -v uv 2>/dev/null)

ifdef UV
  CREATE  = uv venv --quiet --python $(PYTHON) $(VENV)
  INSTALL = uv pip install --quiet --python $(BIN)/python
else
  CREATE  = $(PYTHON) -m venv $(VENV)
  INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
endif

# compiled once, not in each of the processes that tests start, whatever the machine says of bytecode
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo docs readme test lint clean

demo: $(VENV)/.train  ## a small network learns from a large one, on real digits
	$(BIN)/limbeck demo

docs: $(VENV)/.docs  ## the documentation, in site/index.html
	$(BIN)/python docs/generate.py build
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file build/mkdocs.yml --site-dir $(CURDIR)/site

readme: $(VENV)/.docs  ## the table of methods in README.md
	$(BIN)/python docs/generate.py --readme

test: lint  ## everything that CI runs
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build site .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(CREATE)

$(VENV)/.train: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[train]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[docs]'
	touch $@
