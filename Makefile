# Everything for a new machine with Python, pip and make: `make demo` and `make test` build the environment they need.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint types quick slow gpu coverage benchmark sbom clean

demo: $(READY)
	$(BIN)/python examples/lotka_volterra.py

test: lint types quick

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

# A file of tests stays in one process, for its models are fitted once.
quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

slow: $(READY)
	$(BIN)/python -m pytest -m slow

gpu: $(READY)
	$(BIN)/python -m pytest -m 'not slow' --device cuda

coverage: $(READY)
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage report

sbom: $(READY)
	$(BIN)/python .ci/sbom.py

benchmark: $(READY)
	$(BIN)/python benchmarks/recovery.py

# torch first and pinned; with PIP_EXTRA_INDEX_URL set to an index of CPU builds, without CUDA (README.md).
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
