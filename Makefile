PYTHON ?= python

.PHONY: check test lint

check: lint test  ## everything a change must pass

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest
