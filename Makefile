# make demo: install, then answer with the checkpoint that comes along.  make test: install every backend, lint, run all tests.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --use-pep517 --constraint constraints.txt --editable

.PHONY: demo test lint clean

demo: .venv/torch.installed
	$(BIN)/distilbert run --task text-classification "a wonderful film" "the plot is a mess" "i was bored to tears"

test: lint
	$(BIN)/python -m pytest

lint: .venv/all.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/torch.installed: .venv/made pyproject.toml constraints.txt
	$(INSTALL) ".[torch]"
	@touch $@

.venv/all.installed: .venv/made pyproject.toml constraints.txt
	$(INSTALL) ".[all,dev]"
	@touch $@

.venv/made:
	$(PYTHON) -m venv .venv
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info
