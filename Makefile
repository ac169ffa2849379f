# make demo | test | soak | lint | docs: each installs what it needs into .venv first (Python 3.11 or newer as `python3`).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := storage/demo

.PHONY: demo test soak lint docs wheel clean

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The quickstart study with two worker processes, in a database of its own that every run begins anew.
demo: $(VENV)/ready
	rm -rf $(DEMO)
	HPSEARCH_HOME=$(DEMO) HPSEARCH_STORAGE=sqlite:///$(DEMO)/hpsearch.db $(BIN)/hpsearch create-study quickstart
	HPSEARCH_HOME=$(DEMO) HPSEARCH_STORAGE=sqlite:///$(DEMO)/hpsearch.db $(BIN)/hpsearch worker quickstart --device cpu --workers 2
	HPSEARCH_HOME=$(DEMO) HPSEARCH_STORAGE=sqlite:///$(DEMO)/hpsearch.db $(BIN)/hpsearch status quickstart

test: $(VENV)/ready
	$(BIN)/python -m pytest

# 200 trials with 8 workers that are killed, stopped and restarted all the time; many minutes.
soak: $(VENV)/ready
	HPSEARCH_SOAK=1 $(BIN)/python -m pytest tests/test_chaos.py

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

docs: $(VENV)/ready
	$(BIN)/python docs/generate.py

wheel: $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist build storage/demo
