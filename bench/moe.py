"""Does a mixture of experts train and sync? A tiny Qwen3-MoE from random weights on two ranks: warm start, FAPO steps with vLLM, gates.

    python bench/moe.py                                  # make moe: 20 steps, minutes on two quiet cores
    python bench/moe.py --steps 4 --warm-start 20 --dtype bfloat16

The embedded world's problems, rule and oracle; 8 experts, 2 a token, in each of 3 layers; the load-balance term at 0.01. After every step
the gate compares the log-probabilities of sampler and trainer, and their routers' choices. A line a step is printed; the figures go to
bench/results/moe.jsonl, a row a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

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
FIGURES = "mismatch/gate mismatch/router mismatch/exp_abs_dlogp moe/balance moe/busiest reward/mean".split()


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
        steps = [row for row in map(json.loads, (Path(beside) / "moe" / "metrics.jsonl").read_text().splitlines()) if FIGURES[0] in row]
    print(f"{'step':>4} " + " ".join(f"{name:>22}" for name in FIGURES))
    for row in steps:
        print(f"{row['step']:4} " + " ".join(f"{row.get(name, float('nan')):22.6f}" for name in FIGURES))
    worst, least = max(row[FIGURES[0]] for row in steps), min(row.get(FIGURES[1], float("nan")) for row in steps)
    print(f"{len(steps)} steps: the highest gate {worst:.6f}, the lowest agreement of routers {least:.6f}")
    series = {name: [round(row[name], 6) for row in steps if name in row] for name in FIGURES}
    with arguments.out.open("a") as file:
        said = {name: value for name, value in asdict(arguments).items() if name != "out"}
        file.write(json.dumps(said | {"seconds": round(time.time() - begin), **series}) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
