# The project's chores. `make check` is what has to pass before a change lands; the list is in .ci/run.
PYTHON ?= .venv/bin/python

.PHONY: check lint types test site quickstart clusters test-slow test-gpu torture mutants oracle fla-tests engines format docs lock
check:
	bash .ci/run

lint types test site quickstart:
	bash .ci/run $@

test-slow:
	bash .ci/run slow

# uses the GPU, which test.sh hides
test-gpu:
	$(PYTHON) -m pytest -m gpu

# how often runs survive what is done to them: most of an hour on two cores; TORTURE="--only kill"
# for some, TORTURE= for a few trials of each
TORTURE ?= --long --jobs 2
torture:
	$(PYTHON) -m tests.torture $(TORTURE) --report docs/torture

# faults planted one at a time: does the suite catch each?
mutants:
	$(PYTHON) -m tests.torture.mutants

# our operators against fla's references, ORACLE_CALLS generated calls of each; another draw every time
ORACLE_CALLS ?= 100
oracle:
	bash test.sh tests/laws/test_oracle.py --oracle-calls $(ORACLE_CALLS)

# fla's own tests, from a checkout of fla, on the CPU (hours on two cores): make fla-tests FLA=/path/to/checkout
fla-tests:
	$(PYTHON) -m tests.fla_suite $(FLA)

# the table of all engines; in one process, so that every run is in it
engines:
	bash test.sh tests/laws/test_engines.py -n 0 -m 'slow or not slow' -k one_process \
	  --engines-table benchmarks/results/engines_cpu.md

docs:
	$(PYTHON) -m docs.generate_options
	$(PYTHON) -m docs.generate_kernels

# every package of the environment that test.sh makes, with its tested version; +cpu names a build, not a version
lock:
	{ echo "# All packages of the tested environment (Linux x86_64, Python 3.11), made by 'make lock' after 'bash test.sh'."; \
	  $(PYTHON) -m pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//'; } > requirements.lock

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# the templates for clusters, checked by the tools that read them
clusters:
	$(PYTHON) -m venv .clusters-env
	.clusters-env/bin/pip install --quiet skypilot==0.14.1 kubeflow-training==1.9.4 pytest PyYAML
	.clusters-env/bin/python -m pytest --noconftest --override-ini addopts= --override-ini markers= -rs tests/docs/test_cluster_templates.py
