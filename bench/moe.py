"""Does a mixture of experts train and sync? A tiny Qwen3-MoE from random weights on two ranks: warm start, FAPO steps with vLLM, gates.

    python bench/moe.py                                  # make moe: 20 steps, minutes on two quiet cores
    python bench/moe.py --steps 4 --warm-start 20 --dtype bfloat16

The embedded world's problems, rule and oracle; 8 experts, 2 a token, in each of 3 layers; the load-balance term at 0.01. After every step
the gate compares the log-probabilities of sampler and trainer, and their routers' choices. Then a fresh engine and a fresh trainer read the
run's export, and are compared on 2,048 tokens: routers layer by layer, and log-probabilities where all layers chose alike and where one did
not. A line a step is printed; the figures go to bench/results/moe.jsonl, a row a run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    import numpy as np

    from soundrl.engine.ranks import Ranks

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "moe_intermediate_size": 96,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
}
FIGURES = "mismatch/gate mismatch/router mismatch/router_lowest mismatch/exp_abs_dlogp moe/balance moe/busiest reward/mean".split()


@dataclass(frozen=True)
class Arguments:
    steps: int = 20
    warm_start: int = 150
    """Supervised steps of 32 rows before the first rollout."""
    prompts: int = 16
    """A step; 4 samples each."""
    balance: float = 0.01
    dtype: Literal["float32", "bfloat16"] = "float32"
    ranks: int = 2
    out: Path = ROOT / "bench" / "results" / "moe.jsonl"


def write_model(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from soundrl.engine.environments.arithmetic.models import arith_tokenizer

    tokenizer = arith_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3_moe", vocab_size=len(tokenizer), dtype="float32", **SHAPE, **ids)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def compared(folder: Path, dtype: Literal["float32", "bfloat16"]) -> dict[str, Any]:
    """Sampler and trainer on `folder`, on the tokens that the gate takes when it measures once more. `routers`: share of tokens with the
    same experts, by layer; `alike`: share of tokens with the same in all layers; of exp|Δ log-probability| the mean over all tokens (the
    gate's), and mean and maximum over those that are routed alike and over the others (NaN where there are none)."""
    import numpy as np

    from soundrl.engine.ranks import alone

    with alone() as ranks:
        ratio_R, alike_R, shares = measured(folder, dtype, ranks)
    out: dict[str, Any] = {
        "tokens": len(ratio_R),
        "routers": [round(share, 6) for share in shares],
        "alike": round(float(alike_R.mean()), 6),
    }
    for name, part in (("all", ratio_R), ("routed alike", ratio_R[alike_R]), ("routed otherwise", ratio_R[~alike_R])):
        out[name] = [round(float(of(part)), 6) if len(part) else float("nan") for of in (np.mean, np.max)]
    return out


def measured(folder: Path, dtype: Literal["float32", "bfloat16"], ranks: Ranks) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """exp|Δ log-probability| and whether all layers chose alike, of each token; shares by layer. Nothing of vLLM's outlives it, which would
    look at its exit for a process group that has gone."""
    import gc

    import numpy as np
    import torch

    from soundrl.engine.config import Loss, Model, Optim, Rollout
    from soundrl.engine.environments.arithmetic.chains import draw
    from soundrl.engine.experts.agreement import Agreement
    from soundrl.engine.files.model_folder import load_tokenizer
    from soundrl.engine.packing import pack_all
    from soundrl.engine.policy import Policy
    from soundrl.engine.samplers.vllm_sampler import VllmSampler
    from soundrl.engine.trainer import Trainer
    from soundrl.engine.weight_sync import AGAIN, WeightSync

    model, tokenizer = Model(path=str(folder), dtype=dtype, max_length=256), load_tokenizer(folder)
    sampler = VllmSampler(folder, tokenizer, model, Rollout(memory=1.0, eager=True), ranks, loads=True)
    policy = Policy(folder, tokenizer, model, ranks)
    rng = random.Random(1)
    prompts = [np.array(tokenizer(draw(rng).text)["input_ids"], np.int32) for _ in range(8)]
    sync = WeightSync(policy, Trainer(policy, Optim(), Loss(), 1.0), sampler, prompts, 1.0, limit=1.05)
    agreement, gaps = Agreement(policy.routers, sampler.routes), []
    with torch.no_grad():
        with agreement.sampling():
            samples = [replace(sample, index=i) for i, sample in enumerate(sync.probes(AGAIN))]
        for batch in pack_all(samples, 1024, ranks.device):
            with agreement.scoring(batch):
                logprob_R, _ = policy.response_logprobs(batch, 1.0)
            gaps.append((logprob_R - batch.sampler_logprobs[batch.response_index]).abs().exp().numpy())
    shares = agreement.shares(ranks)
    found = np.concatenate(gaps), np.concatenate(agreement.alike), shares
    sampler.close()
    del sampler, sync, agreement
    gc.collect()
    return found


def main(arguments: Arguments) -> None:
    with tempfile.TemporaryDirectory() as beside:
        model = Path(beside) / "model"
        write_model(model)
        settings = {
            "model.path": model,
            "model.dtype": arguments.dtype,
            "warm-start.steps": arguments.warm_start,
            "rollout.prompts": arguments.prompts,
            "optim.minibatch-prompts": arguments.prompts,
            "rollout.samples": 4,
            "loss.balance": arguments.balance,
            "run.steps": arguments.steps,
            "run.folder": beside,
            "run.name": "moe",
        }
        command = [sys.executable, "engine/train.py", "arith", "--data.test"]
        command += [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        begin = time.time()
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NPROC": str(arguments.ranks)})
        found = compared(Path(beside) / "moe" / "policy" / f"step-{arguments.steps:06d}", arguments.dtype)
        steps = [row for row in map(json.loads, (Path(beside) / "moe" / "metrics.jsonl").read_text().splitlines()) if FIGURES[0] in row]
    print(f"{'step':>4} " + " ".join(f"{name:>22}" for name in FIGURES))
    for row in steps:
        print(f"{row['step']:4} " + " ".join(f"{row.get(name, float('nan')):22.6f}" for name in FIGURES))
    worst, least = max(row[FIGURES[0]] for row in steps), min(row.get(FIGURES[1], float("nan")) for row in steps)
    print(f"{len(steps)} steps: the highest gate {worst:.6f}, the lowest agreement of routers {least:.6f}")
    print(f"a fresh sampler and a fresh trainer on {found['tokens']} tokens × {len(found['routers'])} layers: {json.dumps(found)}")
    series = {"compared": found} | {name: [round(row[name], 6) for row in steps if name in row] for name in FIGURES}
    with arguments.out.open("a") as file:
        said = {name: value for name, value in asdict(arguments).items() if name != "out"}
        file.write(json.dumps(said | {"seconds": round(time.time() - begin), **series}) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
