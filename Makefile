# make run: a private environment, then the main job offline with the bundled model
# make test: the same environment, then lint and tests, some of them drawn by a seed (TP_SEED=7 make test repeats one)
# make test-all: every case; make test-fast: half a minute, while editing
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
export HF_HUB_OFFLINE := 1

.PHONY: run test test-all test-fast lint train results bench bench-gpu docs readme matrix clean

run: $(VENV)/.run
	$(BIN)/tokenprune run --save runs/overlay.png

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n auto --dist loadgroup

# Nightly, and before a release.
test-all: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n auto --dist loadgroup --all

# What methods promise, published vectors, and one family.
test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto -q tests/test_select.py tests/test_methods.py tests/test_golden.py \
	  tests/test_golden_video.py tests/test_versions.py -k "not test_versions or qwen2_5_vl"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Train the bundled models again (under two hours each on two cores).
train: $(VENV)/.dev
	$(BIN)/python -m eval.scenes.train --out runs/scenes
	$(BIN)/python -m eval.clips.train --out runs/clips

results: $(VENV)/.dev
	$(BIN)/python -m eval.scenes.heldout
	$(BIN)/python -m eval.scenes.compare
	$(BIN)/python -m eval.scenes.claims
	$(BIN)/python -m eval.scenes.pareto
	$(BIN)/python -m eval.tasks.pack --out runs/tasks --count 60 --video-count 20
	$(BIN)/python -m eval.tasks.grid
	$(BIN)/python -m eval.selection_cost
	$(BIN)/python -m eval.clips.heldout
	$(BIN)/python -m eval.clips.compare
	$(BIN)/python -m eval.video_cost

# The speed bars. Each wants the machine for itself; the second needs a CUDA GPU.
bench: $(VENV)/.dev
	$(BIN)/python -m eval.bench.cpu
	$(BIN)/python -m eval.bench.plot

bench-gpu: $(VENV)/.dev
	$(BIN)/python -m eval.bench.gpu

# The API reference, from docstrings: runs/docs/index.html
docs: $(VENV)/.dev
	$(BIN)/python -m pdoc --output-directory runs/docs tokenprune tokenprune.methods.base tokenprune.methods.signals \
	  tokenprune.families.base tokenprune.core tokenprune.chat tokenprune.overlay tokenprune.explain tokenprune.evaluation \
	  tokenprune.integrations.lmms_eval.model

readme: $(VENV)/.dev
	$(BIN)/python -m eval.readme

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else "tokenprune needs Python 3.10 to 3.13, not %d.%d: make PYTHON=python3.11 run" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) -e .
	mkdir -p runs && touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps lmms-eval
	touch $@

# Which method runs on which family: into the README, and on the screen.
matrix: readme
	$(BIN)/python -m eval.matrix

clean:
	rm -rf $(VENV) build dist *.egg-info
