# Needs Python 3.11 or newer and make. VENV=path puts the virtual environment elsewhere, and JOBS=N
# sets how many processes the tests share.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test lint format clean

help:
	@echo "make install   virtual environment in $(VENV) with the package and its tools"
	@echo "make demo      a synthetic slide through the whole pipeline, into demo/"
	@echo "make test      the test suite (WSI_PGDIPS_DATA=folder adds the real slides)"
	@echo "make lint      ruff, mypy, import-linter"
	@echo "make format    ruff format"
	@echo "make clean     remove $(VENV) and caches"

install: $(STAMP)

# rebuilt when the dependencies change, reused otherwise
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; give it as make PYTHON=python3.x" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/wsi-pgdips demo

test: install
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
