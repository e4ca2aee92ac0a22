# Two commands: `make launch` runs the default experiment, `make test` the tests.
# Each makes its environment the first time and starts at once after that.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?= --profile=4g --clients=20
INPUTS := pyproject.toml constraints.txt hatch_build.py

.PHONY: env launch test lint bench clean

$(BIN)/.installed: $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(BIN)/.installed-dev: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

env: $(BIN)/.installed

launch: $(BIN)/.installed
	$(BIN)/python cli.py launch $(ARGS)

test: $(BIN)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(BIN)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

bench: $(BIN)/.installed
	$(BIN)/python benchmarks/run.py $(BENCHMARKS)

clean:
	rm -rf $(VENV) .venv-peers
