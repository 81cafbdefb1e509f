PYTHON ?= python3
VENV ?= .venv
SECONDS ?= 300
SEED ?= 0
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-importers fuzz lint docs docs-serve bench bench-large clean

demo: $(INSTALLED)
	$(BIN)/python examples/two_moons.py

test: $(INSTALLED) lint docs
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" -q

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q

# as many drawn architectures and damaged files as fit into SECONDS each
fuzz: $(INSTALLED)
	$(BIN)/python -m parity_tests.fuzz architectures --seconds $(SECONDS) --seed $(SEED)
	$(BIN)/python -m parity_tests.fuzz files --seconds $(SECONDS) --seed $(SEED)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# against the libraries that models are imported from, 2 GB of them
test-importers: .venv-importers/.installed
	.venv-importers/bin/python -m pytest parity_tests/test_importers.py parity_tests/test_peers.py \
		parity_tests/test_refusals.py parity_tests/test_estimators.py parity_tests/test_sbi.py \
		parity_tests/test_aspire.py parity_tests/test_families.py -q

.venv-importers/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-importers
	.venv-importers/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[importers]'
	touch $@

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: .venv-bench/.installed
	.venv-bench/bin/python -m benchmarks.run --out outputs/benchmarks.json

# at dim 512, 64 layers, batches of 65,536, images of 64 x 64, contexts of 1,000, with memory
bench-large: .venv-bench/.installed
	.venv-bench/bin/python -m benchmarks.run --large --out outputs/benchmarks-large.json

.venv-bench/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmarks]'
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "twinflows needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-bench .venv-importers outputs site .mypy_cache .pytest_cache .ruff_cache
