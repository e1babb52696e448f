# Atoll's task file. `make` lists what there is; every target sets up what it needs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first interpreter that runs and is new enough; `make PYTHON=/path/to/python setup` overrides.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

# torch goes in first and alone, so that pip settles its build before anything else asks for it. For the
# CPU build on a machine that would get CUDA: TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0

# Tests share the cores between processes; more than one thread in each only makes them wait. A third process
# gained nothing: 24:51 for 8,636 tests on two cores where two took 24:01 for 8,498 before them. Each begins with one
# half of the list and takes from the other's when it is done: what a file starts for its tests is started once.
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
export OMP_NUM_THREADS ?= 1

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
ATOLL := $(BIN)/atoll
SETUP := $(VENV)/.setup
DOCS := $(VENV)/.docs
CODE := $(wildcard src tests examples benchmarks docs)
MAX_LINES := 500

SEEDS ?= 10000

.PHONY: help setup demo stats-demo federation simulate test lint format bench bench-peers bench-deploy bench-masked reliability targets docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(SETUP) ## create .venv and install Atoll with its tools (once; again when pyproject.toml changes)

$(SETUP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; next: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || $(PY) -m pip install -q $(TORCH)
	$(PY) -m pip install -q -e '.[dev]'
	@touch $@

$(DOCS): $(SETUP)
	$(PY) -m pip install -q -e '.[docs]'
	@touch $@

demo: $(SETUP) ## train one model over four hospitals: prints the table, writes runs/heart/report.html
	$(ATOLL) run examples/heart/job.toml --out runs/heart --overwrite

stats-demo: $(SETUP) ## table 1, a logistic regression and survival curves over sites: writes runs/statistics.html
	$(PY) examples/statistics/run.py

federation: $(SETUP) ## start a server and four hospitals on this machine, run the heart job, compare with the simulation
	$(PY) examples/federation/pilot.py

simulate: $(SETUP) ## play SEEDS=10000 storms over a federation in virtual time; prints what was reached
	PYTHONHASHSEED=0 PYTHONPATH=tests/simulation $(PY) -m storm.run --seeds 0:$(SEEDS) --jobs $(WORKERS)

# The tests on a Ray cluster have a process of their own, and wait for longer than they work: it runs beside the rest.
# Tests start hundreds of processes: where PYTHONDONTWRITEBYTECODE is set, each of them would compile what it imports.
test: $(SETUP) ## run all tests (PYTEST_ARGS='-k word' for some of them)
	@$(PY) -m compileall -q -x '/test_|/conftest' src tests || true
	@said=$$(mktemp); $(PY) -m pytest -m cluster $(PYTEST_ARGS) >"$$said" 2>&1 & beside=$$!; status=0; \
	trap 'exit 130' INT; trap 'kill $$beside 2>/dev/null || true; rm -f "$$said"' EXIT; \
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m 'not cluster' $(PYTEST_ARGS) || test $$? -eq 5 || status=1; \
	wait $$beside || test $$? -eq 5 || status=1; \
	echo 'beside them, on a cluster:'; cat "$$said"; exit $$status

lint: $(SETUP) ## check format, style, types, import layers and file sizes
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	@find $(CODE) -name '*.py' -exec wc -l {} + | awk '$$1 > $(MAX_LINES) && $$2 != "total" \
		{ print $$2 ": " $$1 " lines, more than $(MAX_LINES)"; bad = 1 } END { exit bad }'

format: $(SETUP) ## put the code in format and fix what ruff can fix
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: $(SETUP) ## measure speed and memory, write docs/performance.md (BENCH_ARGS=--quick for a look)
	$(PY) -m benchmarks.run $(BENCH_ARGS)

bench-peers: $(SETUP) ## measure Flower, pfl, BlazeFL, FedJAX, NVFlare beside us (long; BENCH_ARGS=--quick for a look)
	$(PY) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("matplotlib") is None)' || $(PY) -m pip install -q matplotlib
	TORCH='$(TORCH)' $(PY) -m benchmarks.peers.run $(BENCH_ARGS)

reliability: $(SETUP) ## kill, cut and starve real federations, write docs/reliability.md (about an hour)
	$(PY) -m benchmarks.reliability $(BENCH_ARGS)

bench-deploy: $(SETUP) ## measure a deployment beside Flower, NVFlare and plain sockets (BENCH_ARGS=--quick for a look)
	TORCH='$(TORCH)' $(PY) -m benchmarks.deploy.run $(BENCH_ARGS)

bench-masked: $(SETUP) ## measure masked and encrypted rounds beside Flower's SecAgg+ (BENCH_ARGS=--quick for a look)
	TORCH='$(TORCH)' $(PY) -m benchmarks.masked $(BENCH_ARGS)

targets: $(SETUP) ## re-run the published results we compare with, write docs/results.md (long)
	$(PY) -m benchmarks.targets.run

docs: $(DOCS) ## build docs/_build/html; any warning is an error
	$(PY) -m sphinx -q -E -W -n --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean: ## remove what was built; runs/ and .venv stay
	rm -rf build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
