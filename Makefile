# Needs make and Python ≥ 3.11, nothing else. Every target makes .venv and installs once; later runs start at once.

# The first of these that really runs and is new enough (an entry of a version manager may exist and not run).
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest

# One thread for a test's many tiny tensors: more of them only wait for each other. Override: make test OMP_NUM_THREADS=4 WORKERS=1
test test-lowest: OMP_NUM_THREADS ?= 1
WORKERS ?= 2
TEST = -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

.PHONY: demo test test-lowest lint docs clean distclean
.DEFAULT_GOAL := demo

demo: $(INSTALLED)
	$(BIN)/sj-robust demo

test: $(INSTALLED)
	OMP_NUM_THREADS=$(OMP_NUM_THREADS) $(BIN)/python $(TEST)

# The same with the oldest versions that pyproject.toml permits; something among these sets the
# locale to C, which tests would read cards in.
test-lowest: $(LOWEST)/.installed
	PYTHONUTF8=1 OMP_NUM_THREADS=$(OMP_NUM_THREADS) $(LOWEST)/bin/python $(TEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(INSTALLED): WHAT := '.[dev]'
$(LOWEST)/.installed: WHAT := '.[test]' --constraint $(LOWEST)/lowest.txt
$(LOWEST)/%: PYTHON := python3.11
$(LOWEST)/.installed: $(LOWEST)/lowest.txt

$(LOWEST)/lowest.txt: pyproject.toml scripts/lowest.py
	@mkdir -p $(@D)
	@$(PYTHON) scripts/lowest.py >$@ || { rm $@; exit 1; }

# The stamp is written last, so that an interrupted installation is taken up again.
$(INSTALLED) $(LOWEST)/.installed: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "sj-robust needs Python 3.11 or newer and found none; name one: make PYTHON=/path/to/python3" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "sj-robust needs Python 3.11 or newer; $(PYTHON) is not. Name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(@D)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(@D) || { \
		echo "$(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -e $(WHAT)
	@touch $@

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
	find sj_robust tests scripts examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LOWEST)
