# make setup   .venv/bin/cowfs, ready to use by any user (system packages come by apt-get when root)
# make demo    the whole story on a temporary home, each step checked
# make test    lint, then all tests
# make test-next   the unit tests on NEXT_PYTHON (python3.13), as 'make test' does too where there is one
# make bench   the benchmarks, with reports in bench/results; QUICK=1 makes them small
# make lint    formatting, lint rules, types
# make man     the manual pages, in build/man
# make clean   remove what was built, but not .cache, from which .venv is made again quickly
# make distclean  remove that too

VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/setup.stamp
COLLECTED := $(VENV)/collected.stamp
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# pyfuse3 is compiled once for a version of it and of Python; both are in the names of wheels, so one directory does.
WHEELS := .cache/wheels
PYFUSE3 := $$($(BIN)/python -c 'import tomllib; print(next(need for need in tomllib.load(open("pyproject.toml", "rb")) \
	["project"]["optional-dependencies"]["fuse"] if need.startswith("pyfuse3")))')
# The system's Python first: an interpreter below somebody's home directory is closed to other users.
FIND_PYTHON := for p in /usr/bin/python3 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done
# Two for each processor: half of the time a worker waits for what it has started.
WORKERS ?= $(shell expr 2 \* $$(nproc))
NEXT_PYTHON ?= python3.13
NEXT := .cache/$(notdir $(NEXT_PYTHON))
PYTEST_ARGS ?=
# Of the C library: memory that a test frees is used by the next, as what is given back must be mapped page by page anew.
KEEP_MEMORY := MALLOC_MMAP_THRESHOLD_=268435456 MALLOC_TRIM_THRESHOLD_=268435456
unexport PYTHONDONTWRITEBYTECODE
RESULTS := bench/results
# A quick run shows that everything works: the figures say nothing.
QUICK_ENGINES := emulated,qcow2,ext4,plain
QUICK_PROGRAMS := engine snapshot rollback raw

.PHONY: setup demo test test-next test-tools lint bench man clean distclean packages-run packages-test packages-bench

setup: $(SETUP)

demo: $(SETUP) packages-test
	scripts/demo

test: $(SETUP) packages-test
	$(MAKE) --no-print-directory --jobs --output-sync=target lint test-next test-tools
	$(KEEP_MEMORY) $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --hypothesis-profile=ci $(PYTEST_ARGS)

# The interface of pools and their metadata: what needs neither pyfuse3 nor guests; with few examples, as 'make test'
# has all of them on one Python.
test-next:
	@if $(NEXT_PYTHON) --version >/dev/null 2>&1; then \
		set -e; \
		if [ ! $(NEXT)/setup.stamp -nt pyproject.toml ]; then \
			$(NEXT)/bin/python -m pip --version >/dev/null 2>&1 || $(NEXT_PYTHON) -m venv --clear $(NEXT); \
			$(NEXT)/bin/python -m pip --quiet --disable-pip-version-check install --editable '.[test]'; \
			touch $(NEXT)/setup.stamp; \
		fi; \
		$(NEXT)/bin/pytest -q -n $(WORKERS) --hypothesis-profile=few tests/pool tests/thinmeta; \
	else \
		echo "make: skipped on $(NEXT_PYTHON), which is not here; on Debian 13: apt-get install python3.13-venv," \
			"elsewhere: pip install uv && uv python install 3.13 --default"; \
	fi

# Peers of the tests from other releases; and what is compiled once: for the thousand processes that the tests start,
# and, where tests have changed, by pytest for its workers.
test-tools: $(SETUP) $(COLLECTED)
	-$(BIN)/python -m tests.kit.thin_tools
	-$(BIN)/python -m tests.kit.docker_engine
	-$(BIN)/python -m tests.kit.containerd_engine
	-$(BIN)/python -m tests.kit.containerd_suite 1.7
	$(BIN)/python -m compileall -q cowfs backends tests

$(COLLECTED): $(shell find tests -name '*.py') | $(SETUP)
	-$(BIN)/pytest -q --collect-only tests >/dev/null
	touch $@

lint: $(SETUP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(SETUP) packages-test packages-bench
	mkdir -p $(RESULTS)
	$(BIN)/cowfs bench $(if $(QUICK),--quick --rounds 1 --over $(QUICK_ENGINES)) --json $(RESULTS)/engines.json --html $(RESULTS)/engines.html
	$(BIN)/python -m bench $(if $(QUICK),--quick $(QUICK_PROGRAMS)) --json $(RESULTS)/programs.json --html $(RESULTS)/programs.html
	for result in engines programs; do \
		$(BIN)/cowfs bench compare $(RESULTS)/$$result.json $(RESULTS)/$$result.json --judge-loaded || exit 1; done

man: $(SETUP)
	$(BIN)/python -m cowfs.cli.manual build/man

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .cache

$(SETUP): pyproject.toml | packages-run
	@python=$$($(FIND_PYTHON)); \
	test -n "$$python" || { echo "make: no Python 3.11 or newer was found" >&2; exit 1; }; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear $(VENV)
	$(PIP) install --upgrade pip 'setuptools>=77'
	$(PIP) wheel --no-deps --prefer-binary --find-links $(WHEELS) --wheel-dir $(WHEELS) $(PYFUSE3)
	$(PIP) install --prefer-binary --find-links $(WHEELS) $(PYFUSE3)
	$(PIP) install --editable '.[fuse,docker,containerd,registry,bench,test,lint]'
	touch $@

packages-run packages-test packages-bench: packages-%:
	scripts/system-packages $*
