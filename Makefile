# Everything starts here: `make reproduce`, `make test`, `make lab`.
# The first use makes .venv from constraints.txt; after that nothing is downloaded.

PYTHON ?= python3
BIN := .venv/bin
ON_EVERY_CORE := -n auto --maxprocesses 4 --dist loadfile
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test test-slow test-browser test-real lab bench bench-shapes lint schema clean

help: ## Say what each target does.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 --constraint constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[work]' --constraint constraints.txt
	touch $@

setup: .venv/.ready ## Make .venv with pinned dependencies.

reproduce: setup ## Run every notebook in a fresh kernel, rewrite figures/, say what held. (about ten minutes)
	$(BIN)/refusalscope reproduce

test: setup lint ## Run everything that tests: pytest on the package, then nbval on every notebook.
	$(BIN)/python -m pytest -q $(ON_EVERY_CORE) -m "not slow and not browser and not real"
	$(BIN)/python -m pytest -q $(ON_EVERY_CORE) --nbval notebooks

test-slow: setup ## Retrain one organism and compare it with its card. (about eight minutes)
	$(BIN)/python -m pytest -q -m slow

test-browser: setup ## Run the quickstart in JupyterLab in a Chromium; pictures in build/browser. (about three minutes)
	@$(BIN)/python tests/chromium.py
	$(BIN)/python -m pytest -q -m browser

test-real: setup ## Measure a real chat model, SmolLM2-135M-Instruct, beside an oracle. (about five minutes; downloads 98 MB once)
	$(BIN)/python tests/fetch_real.py build/real
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m real

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --project pyproject.toml

schema: setup ## Publish the schemas of stored results in data/schema.
	$(BIN)/python -c "from refusalscope.results.schema import publish; publish('data/schema')"

lab: setup ## Open JupyterLab on the notebooks.
	$(BIN)/jupyter lab notebooks

bench: setup ## Measure speed against a naive sweep; prints ratios.
	$(BIN)/python tests/benchmarks/selection_speed.py
	$(BIN)/python tests/benchmarks/readout_speed.py

bench-shapes: setup ## Measure speed and memory in the shapes of chat models; all of them on a GPU.
	$(BIN)/python tests/benchmarks/shape_speed.py

clean: ## Remove the environment and everything built.
	rm -rf .venv build .pytest_cache .ruff_cache
