# setup, demo, test, check: what a newcomer and a contributor need. PYTHON picks the interpreter the environment is made from.
# On Linux pip's torch brings CUDA along; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu takes the small CPU build instead.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test slow check bench nano

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

# A file's tests share what takes long to make, so they run in one process. SLOW: more options, such as --begin-within 30 (minutes).
slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(SLOW)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Ours beside the plain way and beside WanPipeline without identity, at toy and at mid size: minutes on two cores. benchmarks/gpu.sh is
# for a machine with a GPU.
bench: setup
	$(BIN)/lynx-video bench --rounds 3 --steps 4
	$(BIN)/lynx-video bench --size mid --rounds 2 --steps 1

# Trains the nano models again from seeds (hours on two cores); every stage goes on from its last checkpoint. The adapters come from
# the package's own trainer, stills first, then clips.
NANO := runs/nano
TRAIN := $(BIN)/lynx-video train $(NANO)/set
nano: setup
	for stage in vae face data base export few_step; do $(BIN)/python -m lynx_video.nano.recipe $$stage --run $(NANO) || exit 1; done
	test -f $(NANO)/set/dataset.json || $(BIN)/lynx-video dataset draw $(NANO)/set --clips 8000 --stills 8000 --seed 1 --overwrite
	$(TRAIN) $(NANO)/full-image --preset nano-image
	$(TRAIN) $(NANO)/full-video --preset nano-video --start $(NANO)/full-image/adapter
	$(TRAIN) $(NANO)/lite-image --preset nano-image --arm lite --steps 300
	$(TRAIN) $(NANO)/lite-clips --preset nano-video --arm lite --steps 800 --matrix-rate 3e-3 --start $(NANO)/lite-image/adapter
	$(TRAIN) $(NANO)/lite-video --preset nano-video --arm lite --steps 1200 --matrix-rate 4e-3 --drop-identity 0.1 \
		--start $(NANO)/lite-clips/adapter
	$(BIN)/python -m lynx_video.nano.recipe export --run $(NANO)
	for name in nano:lynx_full nano-lite:lynx_lite; do $(BIN)/python benchmarks/calibrate_step_cache.py --model $${name%%:*} \
		--output src/lynx_video/nano/weights/$${name##*:}/step_cache.json || exit 1; done
