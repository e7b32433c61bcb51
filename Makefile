# make demo: install, then answer with a checkpoint.  make test: install every backend, lint, run all tests.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --use-pep517 --constraint constraints.txt --editable

.PHONY: demo test lint clean

demo: .venv/torch.installed
	@echo "The checkpoint of this demo has random weights: its answers mean nothing but that everything works."
	$(BIN)/distilbert run --task text-classification --model tests/golden/distilbert-seqcls \
		"a wonderful film" "the plot is a mess" "i do not know"

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
