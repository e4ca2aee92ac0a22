# `make launch` runs the default experiment, `make test` the tests, `make check` the quick ones and
# `make test-all` those of every method, layout or byte too, as CI does. Each makes its environment
# the first time and starts at once after that.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?= --profile=4g --clients=20
INPUTS := pyproject.toml constraints.txt hatch_build.py
PYTEST := $(BIN)/python -m pytest
LEFT := thorough or patient or packages
# Else each worker, and each process that a test starts, would compile the same files again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env launch test test-all check unit packages lint bench sbom clean

$(BIN)/.installed: $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	touch $@

$(BIN)/.installed-dev: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

env: $(BIN)/.installed

launch: $(BIN)/.installed
	$(BIN)/python cli.py launch $(ARGS)

# Folders of tests that run alone: a collection of all takes longer than some of them.
QUIET := tests/e2e tests/net
# Of what PYTEST_ARGS names, one part may hold no test, which is pytest's exit status 5; not both.
test-all: LEFT := patient or packages
test test-all: lint
	@part() { \
	  $(PYTEST) "$$@" $(PYTEST_ARGS); status=$$?; \
	  [ $$status = 5 ] || found=$$status; \
	  [ $$status = 0 ] || [ $$status = 5 ] || exit $$status; \
	}; \
	found=5; \
	part -n auto -m "not quiet and not ($(LEFT))"; \
	part -m "quiet and not ($(LEFT))" $(if $(PYTEST_ARGS),,$(QUIET)); \
	exit $$found

# Types take one core half a minute the first time, which tests need not wait for.
check: $(BIN)/.installed-dev
	@$(MAKE) --no-print-directory -j2 lint unit

unit: $(BIN)/.installed-dev
	$(PYTEST) -n auto -m "not ($(LEFT))" $(PYTEST_ARGS) tests/unit

# Other people's programs as docs/exec.md starts them, from the package index.
packages: $(BIN)/.installed-dev
	$(PYTEST) -m packages $(PYTEST_ARGS) tests/packages

lint: $(BIN)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

bench: $(BIN)/.installed
	$(BIN)/python benchmarks/run.py $(BENCHMARKS)

# What is installed for it, as CycloneDX JSON.
sbom: $(BIN)/.installed-dev
	$(BIN)/python .ci/sbom.py > wiretune.cdx.json

clean:
	rm -rf $(VENV) .venv-peers .venv-packages
