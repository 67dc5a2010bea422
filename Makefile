# The project's chores. `make check` is what has to pass before a change lands.
PYTHON ?= .venv/bin/python

.PHONY: check lint types test test-slow test-gpu test-torture engines format docs
check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m pyright

test:
	bash test.sh

test-slow:
	bash test.sh -m slow

test-torture:
	bash test.sh -m torture

# the table of all engines; in one process, so that every run is in it
engines:
	bash test.sh tests/laws/test_engines.py -n 0 -m 'slow or not slow' -k one_process \
	  --engines-table benchmarks/results/engines_cpu.md

# uses the GPU, which test.sh hides
test-gpu:
	$(PYTHON) -m pytest -m gpu

docs:
	$(PYTHON) -m docs.generate_options

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
