# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes the virtual environment and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

LOWEST := .venv-lowest

.PHONY: demo test test-lowest coverage docs lint clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/finelens demo

test: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The lowest versions that pyproject.toml allows, on Python 3.11, under the tests that need no more than they.
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --python-version 3.11 --resolution lowest-direct --extra parquet --output-file $(LOWEST)/lowest.txt pyproject.toml
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --requirement $(LOWEST)/lowest.txt pytest hypothesis import-linter
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest tests/core tests/storage tests/solvers tests/evaluation tests/classes tests/runs

# Lines of what stands between a run and its loss: decoding, run state, checkpoints. One process, about five minutes.
coverage: $(VENV)/.installed
	$(BIN)/python scripts/measure_coverage.py

# The documentation as a site in build/site; a link or an anchor that leads nowhere fails it.
docs: $(VENV)/.installed
	$(BIN)/python scripts/api_page.py
	$(BIN)/mkdocs build --strict

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) build dist src/*.egg-info
