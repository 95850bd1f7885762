# Each recipe is a plain command that can be typed by hand. `make` alone lists the targets.
SHELL := /bin/bash
PY := .venv/bin/python
SYSTEM_PYTHON ?= $(shell for p in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)

.PHONY: help run serve test check bench soak fresh setup
help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

setup: .venv/.complete ## install what everything here needs

# uv comes from the package index into a folder of its own, so neither ensurepip nor a recent pip is needed.
.venv/.complete: pyproject.toml constraints.txt scripts/setup.sh
	SYSTEM_PYTHON=$(SYSTEM_PYTHON) bash scripts/setup.sh
	@touch $@

run: setup ## set up, then run examples/penguins
	$(PY) examples/penguins/run.py

serve: setup ## serve in the foreground
	$(PY) -m roost.server

# As many tests run at once; they wait as much as they work. JOBS=0 runs them in one process.
JOBS ?= 2
test: setup .venv/.languages ## run the tests
	$(PY) -m pytest -n $(JOBS) --dist worksteal

.venv/.languages: .venv/.complete scripts/languages.sh
	bash scripts/languages.sh
	@touch $@

check: setup ## format, lint, types, arrows
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: .venv/.bench ## measure speed and memory beside a Jupyter kernel; FULL=1 takes longer
	$(PY) -m benchmarks $(if $(FULL),--full)

.venv/.bench: .venv/.complete
	SYSTEM_PYTHON=$(SYSTEM_PYTHON) bash scripts/setup.sh bench
	@touch $@

soak: setup ## a hundred kills of server and keeper
	ROOST_SOAK=1 $(PY) -m pytest -s -m soak

fresh: setup ## as root: make run and make test on a fresh minimal Debian
	ROOST_FRESH=1 $(PY) -m pytest -s -m fresh
