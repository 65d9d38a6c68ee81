# make demo: sets everything up, trains the laptop preset on MNIST and names the pictures that it wrote.
# make check: the inner loop, under a minute: format, lint, types, import contracts, laws.
# make test: everything.

BIN := .venv/bin

.PHONY: demo static check test format clean

demo: .venv/.ready
	$(BIN)/pocketdiff train --preset laptop

static: .venv/.ready-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check: static
	$(BIN)/pytest -n 2 --dist worksteal -m 'not slow' tests/laws

test: static
	$(BIN)/pytest -n 2 --dist worksteal --durations 5

format: .venv/.ready-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.venv/.ready: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing pocketdiff into .venv: about two minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.ready-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing pocketdiff and the test tools into .venv: about two minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.ready

.venv/bin/python:
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec $$python -m venv .venv; \
		fi; \
	done; \
	echo "no Python 3.11 or newer with venv was found; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1
