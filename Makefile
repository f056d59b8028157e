# make setup   .venv/bin/cowfs, ready to use by any user (system packages come by apt-get when root)
# make demo    the whole story on a temporary home, each step checked
# make test    lint, then all tests
# make bench   the benchmarks; QUICK=1 makes them small
# make lint    formatting, lint rules, types
# make clean   remove what was built

VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/setup.stamp
# The system's Python first: an interpreter below somebody's home directory is closed to other users.
FIND_PYTHON := for p in /usr/bin/python3 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done
WORKERS ?= auto
PYTEST_ARGS ?=

.PHONY: setup demo test lint bench clean packages-run packages-test packages-bench

setup: $(SETUP)

demo: $(SETUP) packages-test
	scripts/demo

test: packages-test lint
	-$(BIN)/python -m cowfs.testing.thin_tools
	-$(BIN)/python -m cowfs.testing.docker_engine
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --hypothesis-profile=ci $(PYTEST_ARGS)

lint: $(SETUP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(SETUP) packages-test packages-bench
	$(BIN)/python -m bench $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(SETUP): pyproject.toml | packages-run
	@python=$$($(FIND_PYTHON)); \
	test -n "$$python" || { echo "make: no Python 3.11 or newer was found" >&2; exit 1; }; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip 'setuptools>=77'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuse,docker,test,lint]'
	touch $@

packages-run packages-test packages-bench: packages-%:
	scripts/system-packages $*
