# The project's chores. `make check` is what has to pass before a change lands.
PYTHON ?= .venv/bin/python

.PHONY: check lint types test test-slow test-gpu test-torture engines format docs lock
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

# every package of the environment that test.sh makes, with the version that was tested; +cpu names a build, not a version
lock:
	{ echo "# All packages of the tested environment (Linux x86_64, Python 3.11), made by 'make lock' after 'bash test.sh'."; \
	  $(PYTHON) -m pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//'; } > requirements.lock

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
