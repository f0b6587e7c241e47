# make run: a private environment, then the main job offline with the bundled model
# make test: the same environment, then lint, types and tests, some of them drawn by a seed (TP_SEED=7 make test repeats one)
# make test-all: every case; make test-fast: half a minute, while editing
# make PYTHON=python3.12 run: with another Python; VENV=folder: in another environment
# make TORCH=my-torch.txt run: with another torch than that of constraints-torch.txt
PYTHON ?= python3
VENV := .venv
LOCK := constraints.txt
TORCH := constraints-torch.txt
BIN := $(VENV)/bin
HF_TESTS := .venvs/hf-tests
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c $(LOCK) -c $(TORCH)
UV := .venvs/uv/bin
export HF_HUB_OFFLINE := 1

.PHONY: run test test-all test-fast test-versions hf-tests lint lock train results bench bench-gpu docs readme matrix clean

run: $(VENV)/.run
	$(BIN)/tokenprune run --save runs/overlay.png

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n auto

# Nightly, and before a release.
test-all: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n auto --all

# What methods promise, published vectors, and one family.
test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto -q tests/test_select.py tests/test_methods.py tests/test_golden.py \
	  tests/test_golden_video.py tests/test_versions.py -k "not test_versions or qwen2_5_vl"

# A sample of the laws on several versions of transformers, into eval/results/versions.json; ONLY=5.24.0: on that one.
test-versions: $(VENV)/.run
	$(BIN)/python -m eval.versions --python $(PYTHON) $(if $(ONLY),--only $(ONLY))

# transformers' own model tests on pruned models, from a checkout of the version that is installed: make hf-tests
# HF=path/to/transformers. A short list of them; ALL=1: every one. Into eval/results/hf_tests.json and .md
hf-tests: $(VENV)/.dev $(HF_TESTS)/.done
	PYTHONPATH=$(HF_TESTS) OMP_NUM_THREADS=1 $(BIN)/python -m eval.hf_tests.run $(HF) $(if $(ALL),--all)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

# constraints.txt from the ranges in pyproject.toml; pins that fit them stay. make UPGRADE=1 lock takes the newest of all.
lock: $(UV)/uv
	$(UV)/python -m eval.lock $(if $(UPGRADE),--upgrade)

# Train the bundled models again (under two hours each on two cores; pages wants a GPU: DEVICE=cuda).
train: $(VENV)/.dev
	$(BIN)/python -m eval.worlds.train scenes --out runs/scenes
	$(BIN)/python -m eval.worlds.train clips --out runs/clips
	$(BIN)/python -m eval.worlds.train pages --out runs/pages --device $(or $(DEVICE),cpu)

results: $(VENV)/.dev
	$(BIN)/python -m eval.worlds.heldout scenes
	$(BIN)/python -m eval.worlds.compare scenes
	$(BIN)/python -m eval.worlds.scenes.claims
	$(BIN)/python -m eval.worlds.pareto scenes
	$(BIN)/python -m eval.tasks.pack --out runs/tasks --count 60 --video-count 20
	$(BIN)/python -m eval.tasks.grid
	$(BIN)/python -m eval.selection_cost
	$(BIN)/python -m eval.worlds.heldout clips
	$(BIN)/python -m eval.worlds.compare clips
	$(BIN)/python -m eval.worlds.pareto clips
	$(BIN)/python -m eval.worlds.heldout pages
	$(BIN)/python -m eval.worlds.compare pages
	$(BIN)/python -m eval.worlds.pages.claims
	$(BIN)/python -m eval.worlds.pareto pages
	$(BIN)/python -m eval.video_cost
	$(BIN)/python -m eval.media.compare
	$(BIN)/python -m eval.screens

# The speed bars. Each wants the machine for itself; the second needs a CUDA GPU.
bench: $(VENV)/.dev
	$(BIN)/python -m eval.bench.cpu
	$(BIN)/python -m eval.bench.encoder
	$(BIN)/python -m eval.bench.plot

bench-gpu: $(VENV)/.dev
	$(BIN)/python -m eval.bench.gpu

# The site, offline and with warnings as errors: runs/docs/index.html
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

readme: $(VENV)/.dev
	$(BIN)/python -m eval.faithfulness
	$(BIN)/python -m eval.readme

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else "tokenprune needs Python 3.11 to 3.14, not %d.%d: make PYTHON=python3.12 run" % v)'
	$(PYTHON) -m venv $(VENV)

# The build runs in this environment, not in one of its own, so that setuptools is the pinned one.
$(VENV)/.run: $(VENV)/bin/python pyproject.toml $(LOCK) $(TORCH)
	$(PIP) torch setuptools
	$(PIP) --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --no-build-isolation -e '.[dev]'
	$(PIP) --no-deps lmms-eval
	touch $@

$(UV)/uv:
	$(PYTHON) -m venv .venvs/uv
	$(UV)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

$(HF_TESTS)/.done: eval/hf_tests/requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(HF_TESTS) -r $<
	touch $@

# Which method runs on which family, on the screen.
matrix: $(VENV)/.dev
	$(BIN)/python -m eval.matrix

clean:
	rm -rf $(VENV) .venvs build dist *.egg-info
