# make demo | test | browser | slurm | soak | lint | docs: each installs what it needs into .venv first (Python 3.11 or 3.12 as `python3`).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := storage/demo

.PHONY: demo test browser slurm soak lint docs constraints wheel clean

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The whole chain on handwritten digits with two worker processes, in a database of its own that every run begins anew:
# search on digits 0 to 4, confirm, final test, export, verify, transfer to digits 5 to 9, report.
demo: export HPSEARCH_HOME := $(DEMO)
demo: export HPSEARCH_STORAGE := sqlite:///$(DEMO)/hpsearch.db
demo: HPSEARCH := $(BIN)/hpsearch
demo: TRANSFER := $(DEMO)/exports/quickstart --data digits:5-9 --seeds 5 --epochs 3
demo: $(VENV)/ready
	rm -rf $(DEMO)
	$(HPSEARCH) create-study quickstart --set data.name=digits:0-4 --set training.epochs=4
	$(HPSEARCH) worker quickstart --device cpu --workers 2
	$(HPSEARCH) status quickstart
	$(HPSEARCH) confirm quickstart --top 3 --seeds 5
	$(HPSEARCH) worker quickstart-confirm --device cpu --workers 2
	$(HPSEARCH) confirm quickstart
	$(HPSEARCH) final-test quickstart
	$(HPSEARCH) export quickstart -o $(DEMO)/exports/quickstart
	$(HPSEARCH) verify $(DEMO)/exports/quickstart
	$(HPSEARCH) transfer $(TRANSFER)
	$(HPSEARCH) worker lenet-to-digits-5-9-32 --device cpu --workers 2
	$(HPSEARCH) transfer $(TRANSFER)
	$(HPSEARCH) final-test lenet-to-digits-5-9-32
	$(HPSEARCH) report quickstart quickstart-confirm lenet-to-digits-5-9-32 -o $(DEMO)/report.html

# Two files at once: a test has one thread, and many wait. The order is that of the names, or long files would come last.
# What is not installed is skipped, and says so: a browser, Slurm, PgBouncer, docker-compose, Caddy, network namespaces.
test: $(VENV)/ready
	-tests/install.sh
	-tests/web/install.sh
	-tests/launch/install.sh
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Chromium, its driver and axe-core, for the tests of the dashboard's pages.
browser: $(VENV)/ready
	tests/web/install.sh

# Slurm, for the tests of workers in its queue.
slurm:
	tests/launch/install.sh

# 200 trials with 8 workers that are killed, stopped and restarted all the time; many minutes.
soak: $(VENV)/ready
	HPSEARCH_SOAK=1 $(BIN)/python -m pytest tests/test_chaos.py

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

# The versions that the Dockerfile installs: those with which the tests ran.
constraints: $(VENV)/ready
	$(BIN)/pip freeze --exclude-editable > constraints.txt

docs: $(VENV)/ready
	$(BIN)/python docs/generate.py

wheel: $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist build storage/demo
