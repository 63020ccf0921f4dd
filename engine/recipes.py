"""Named runs, each a complete configuration. `torchrun engine/train.py <recipe> --group.setting value` overrides any of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from soundrl.engine.config import Config, Data, Fapo, Genrm, Loss, Model, Optim, Rollout, Run, WarmStart

ARITH_SOLUTIONS = "soundrl.engine.environments.arithmetic.critic:arith"
"""Labelled solutions of the embedded world."""


def arith() -> Config:
    """The embedded world: no download, minutes on two CPU cores; flawed positives arise by themselves and are trained away."""
    return Config(
        model=Model(path="arith", dtype="float32", max_length=80),
        data=Data(train=("arith",), test=("arith",), test_rows=400),
        warm_start=WarmStart(steps=1500, batch=32, lr=2e-3),
        rollout=Rollout(prompts=32, samples=8, temperature=1.0, max_new_tokens=60, memory=0.3, eager=True),
        # On policy: one update per rollout batch.
        optim=Optim(lr=2e-4, adamw=(0.9, 0.999, 0.0), warmup_steps=5, minibatch_prompts=32, microbatch_tokens=1024),
        fapo=Fapo(lam=1.0),
        genrm=Genrm(judge="oracle"),
        run=Run(name="arith", steps=80, eval_every=0, eval_sampling=(2, 1.0, 1.0)),
    )


def arith_genrm() -> Config:
    """`make run`: the same in 32 steps at twice the rate from the committed warm start, judged by the world's GenRM in a vLLM process."""
    judge = Genrm(
        judge="serve",
        model="starts/judge",
        max_tokens=64,
        deadline=(120.0, 600.0),
        probe=(ARITH_SOLUTIONS, 20, 0.0),
        second=("oracle", 0.05),
    )
    base = arith()
    return replace(
        base,
        optim=replace(base.optim, lr=4e-4, microbatch_tokens=4096),
        model=replace(base.model, path="starts/policy"),
        warm_start=replace(base.warm_start, steps=0),
        genrm=judge,
        run=replace(base.run, name="arith-genrm", steps=32),
    )


def arith_tools() -> Config:
    """The embedded world with a calculator: rollouts of several turns, and misuse of the tool among the flaws; minutes on two CPU cores."""
    base = arith()
    return replace(
        base,
        # From the committed warm start, which can add one digit.
        model=replace(base.model, path="starts/policy"),
        data=replace(base.data, train=("arith-tools",), test=("arith-tools",)),
        warm_start=replace(base.warm_start, steps=900, lr=1.5e-3),
        rollout=replace(base.rollout, turns=(4, 10.0)),
        run=replace(base.run, name="arith-tools", steps=50),
    )


def smollm2_gsm8k() -> Config:
    """SmolLM2-135M-Instruct on GSM8K: a warm start on worked solutions, then GRPO; give it a judge and --fapo.lam 1 for FAPO."""
    return Config(
        model=Model(path="models/smollm2", dtype="bfloat16", max_length=768),
        data=Data(train=("data/gsm8k-train.jsonl",), test=("data/gsm8k-test.jsonl",)),
        warm_start=WarmStart(steps=700, batch=32, lr=5e-5),  # three epochs of the 7,473 rows
        rollout=Rollout(prompts=64, samples=8, max_new_tokens=320, memory=0.3),
        optim=Optim(lr=2e-6, minibatch_prompts=64, microbatch_tokens=16384),
        fapo=Fapo(lam=0.0),
        genrm=Genrm(judge="none"),
        run=Run(name="smollm2-gsm8k", steps=100, eval_every=25, eval_sampling=(1, 0.6, 0.95)),
    )


def paper(name: str, path: str, response: int, steps: int, lam: float, tensor_parallel: int, rope: int) -> Config:
    """What the paper's four reasoning runs share (arXiv 2510.22543 Tab. 1 and the released scripts).

    Their sequence parallelism has no setting here, and their offload is off (`model.save_memory`): fp32 master weights and moments are
    sharded over all ranks (12 bytes × parameters ÷ ranks), and packed micro-batches with recomputation bound activations by
    `optim.microbatch_tokens`.
    """
    return Config(
        model=Model(path=path, dtype="bfloat16", max_length=2048 + response, rope_base_length=rope, save_memory=("recompute",)),
        # Evaluation: avg@32 on AIME24 and AIME25 (the paper adds GPQA-Diamond, avg@4).
        data=Data(train=("data/dapo-math-17k.parquet",), test=("data/aime24.jsonl", "data/aime25.jsonl")),
        rollout=Rollout(prompts=512, samples=8, temperature=1.0, max_new_tokens=response, memory=0.5, tensor_parallel=tensor_parallel),
        # The released runs correct nothing for the sampler; their clips and optimizer are the defaults of `Loss` and `Optim`.
        loss=Loss(correction=("none", 0.5, 2.0)),
        optim=Optim(microbatch_tokens=2048 + response),
        fapo=Fapo(lam=lam, overlong=(4096, 1.0)),
        # λ = 0 still judges nothing in the paper's baseline; ours neither, name a judge to see its flawed share.
        genrm=Genrm(judge="endpoint", urls=("http://127.0.0.1:8000/v1",), model="FAPO-GenRM-4B", max_tokens=16384, prompt="paper")
        if lam
        else Genrm(judge="none"),
        run=Run(name=name, steps=steps, eval_every=10, eval_sampling=(32, 1.0, 0.7), save=(10, 2, 50)),
    )


def grpo_7b() -> Config:
    """The paper's 7B baseline: Qwen2.5-Math-7B, rule reward alone (32 GPUs in the paper)."""
    return paper("grpo-7b", "models/Qwen2.5-Math-7B", 8192, 200, 0.0, 1, 32768)


def fapo_7b() -> Config:
    """The paper's 7B run: Qwen2.5-Math-7B with FAPO-GenRM-4B as judge (32 GPUs in the paper)."""
    return paper("fapo-7b", "models/Qwen2.5-Math-7B", 8192, 200, 1.0, 1, 32768)


def grpo_32b() -> Config:
    """The paper's 32B baseline: Qwen2.5-32B, rule reward alone (64 GPUs in the paper)."""
    return paper("grpo-32b", "models/Qwen2.5-32B", 20480, 500, 0.0, 4, 0)


def fapo_32b() -> Config:
    """The paper's 32B run: Qwen2.5-32B with FAPO-GenRM-4B as judge (64 GPUs in the paper)."""
    return paper("fapo-32b", "models/Qwen2.5-32B", 20480, 500, 1.0, 4, 0)


def genrm_arith() -> Config:
    """A GenRM for the embedded world: a warm start on sums and critiques, then RL with the step-wise reward; minutes on two CPU cores."""
    base = arith()
    return replace(
        base,
        model=replace(base.model, max_length=144),
        warm_start=replace(base.warm_start, steps=1000),
        rollout=replace(base.rollout, max_new_tokens=64),
        optim=replace(base.optim, microbatch_tokens=4096),
        fapo=Fapo(lam=0.0),
        genrm=Genrm(judge="none"),
        run=Run(name="genrm-arith", task="critic", steps=60, eval_every=0),
    )


def genrm_4b() -> Config:
    """The paper's GenRM: Qwen3-4B-Instruct-2507 on FAPO-Critic-85K (arXiv 2510.22543 Tab. 1; 32 to 64 GPUs)."""
    prompt, response = 5120, 8192
    return Config(
        model=Model(path="models/Qwen3-4B-Instruct-2507", dtype="bfloat16", max_length=prompt + response, save_memory=("recompute",)),
        data=Data(train=("data/fapo-critic-train.parquet",), test=("data/fapo-critic-test.parquet",)),
        rollout=Rollout(prompts=512, samples=16, temperature=1.2, max_new_tokens=response, memory=0.5),
        loss=Loss(correction=("none", 0.5, 2.0)),
        optim=Optim(microbatch_tokens=prompt + response),
        fapo=Fapo(lam=0.0, overlong=(4096, 1.0)),
        genrm=Genrm(judge="none", prompt="paper"),
        run=Run(name="genrm-4b", task="critic", steps=500, eval_every=10, eval_sampling=(1, 0.6, 0.95), save=(10, 2, 50)),
    )


MADE = (arith, arith_genrm, arith_tools, smollm2_gsm8k, genrm_arith, genrm_4b, grpo_7b, fapo_7b, grpo_32b, fapo_32b)
RECIPES: dict[str, Callable[[], Config]] = {made.__name__.replace("_", "-"): made for made in MADE}

DEFAULT = "arith"
"""Where no recipe is named."""
