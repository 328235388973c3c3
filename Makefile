VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Processes that share the tests; each of them holds torch, so more need memory.
WORKERS ?= 2

.PHONY: install demo test test-slow style quality bench wheel clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install  ## train two small ViTs on halves of the digits, merge, evaluate, write the card
	$(BIN)/python scripts/demo.py

test: install  ## the quick suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-slow: install  ## what needs minutes
	$(BIN)/python -m pytest -m slow

style: install  ## format and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install  ## the gate: lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## every benchmark, as ratios against a peer or a limit measured in the same run
	$(BIN)/python scripts/bench_matching.py

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) .wheel-venv build dist demo_output .mypy_cache .ruff_cache .pytest_cache
