# setup, demo, test, check: what a newcomer and a contributor need. PYTHON picks the interpreter the environment is made from.
# On Linux pip's torch brings CUDA along; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu takes the small CPU build instead.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test slow check nano

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(VENV)/.done

demo: setup
	$(BIN)/lynx-video demo --overwrite

test: setup
	$(BIN)/python -m pytest -n 2

slow: setup
	$(BIN)/python -m pytest -n 2 -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Trains the nano models again from seeds (hours on two cores); every stage goes on from its last checkpoint.
nano: setup
	for stage in vae face data base adapters export; do $(BIN)/python -m lynx_video.nano.recipe $$stage || exit 1; done
