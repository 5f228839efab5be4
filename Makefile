# make demo, make test, make lint, make bench, make soak, make clean. Everything happens in .venv.

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install

# What to pass on: make demo ARGS="--port 9000"; make test TESTS=tests.ops TRIAL_ARGS=--until-failure
ARGS =
TESTS = tests
TRIAL_ARGS = -j2
MINUTES = 30

LINTERS = lint-code lint-format lint-types lint-imports lint-news

.PHONY: demo test lint $(LINTERS) bench soak clean

# exec: a signal to make, or Ctrl-C, ends the demo, which ends all that it started.
demo: $(VENV)/installed
	@exec $(BIN)/imctl demo $(ARGS)

test: $(VENV)/installed-test
	$(BIN)/python -m twisted.trial $(TRIAL_ARGS) $(TESTS)

lint: $(LINTERS)

lint-code: $(VENV)/installed-test
	$(BIN)/ruff check

lint-format: $(VENV)/installed-test
	$(BIN)/ruff format --check

lint-types: $(VENV)/installed-test
	$(BIN)/mypy

lint-imports: $(VENV)/installed-test
	$(BIN)/lint-imports --no-logo

lint-news: $(VENV)/installed-test
	@$(BIN)/towncrier build --draft --version next

bench: $(VENV)/installed-test
	@exec $(BIN)/imctl bench $(or $(ARGS),all)

soak: $(VENV)/installed-test
	@exec $(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

# Installed again only when what is to be installed has changed. The project itself is installed in place.
$(VENV)/installed: $(BIN)/python setup.cfg pyproject.toml
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-test: $(BIN)/python setup.cfg pyproject.toml
	$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'imserver needs Python 3.11 or later: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
