"""What an fp32 head is worth on bf16 weights: the gate's mean exp|Δlog p| over `--tokens` tokens, with vLLM's head in fp32 and in
bf16, and the trainer's likewise, at temperature 1 and 1.2.

    make models/smollm2/config.json && python bench/fp32_head.py --model models/smollm2 --data ../shared/data/gsm8k-test.jsonl

An engine a process (its head is settled as it starts); both trainers score the same rollouts. The type of head that the running engine
has stands in each row: a vLLM that ignored the setting would show there. On a CPU without bf16 instructions a hundred tokens take a
quarter of a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import ROOT, machine

from soundrl.genrm.serve.machine import positions, reserve_port

PROMPTS = 8
MOST_TOKENS = 512  # of prompt and response, or the model's own context


def head_type(worker: Any) -> str:
    """Runs in vLLM's worker."""
    return str(worker.vllm_config.model_config.head_dtype).removeprefix("torch.")


def measure(model_path: Path, data: Path, tokens: int, sampler_head: str) -> list[dict[str, Any]]:
    """The rows of one engine; `sampler_head` float32 is how the trainer starts it, bfloat16 how vLLM would start by itself."""
    from soundrl.engine import policy as policies
    from soundrl.engine.config import Loss, Model, Optim, Rollout
    from soundrl.engine.files.model_folder import load_tokenizer
    from soundrl.engine.launch.launch import be_quiet
    from soundrl.engine.policy import Policy
    from soundrl.engine.ranks import Ranks
    from soundrl.engine.samplers.vllm_sampler import VllmSampler
    from soundrl.engine.trainer import Trainer
    from soundrl.engine.weight_sync import WeightSync

    be_quiet()
    ranks = Ranks.start()
    tokenizer = load_tokenizer(model_path)
    settings = Model(path=str(model_path), dtype="bfloat16", max_length=min(MOST_TOKENS, positions(model_path) or MOST_TOKENS))
    policy = Policy(model_path, tokenizer, settings, ranks)
    trainer = Trainer(policy, Optim(microbatch_tokens=1024), Loss(), 1.0)

    import vllm

    if sampler_head == "bfloat16":
        started = vllm.LLM

        def own_head(*arguments: Any, hf_overrides: dict[str, Any], **options: Any) -> vllm.LLM:
            return started(*arguments, hf_overrides={k: v for k, v in hf_overrides.items() if k != "head_dtype"}, **options)

        vllm.LLM = own_head  # type: ignore[assignment,misc]
    memory = 1.0 if ranks.device.type == "cpu" else 0.4
    generator = VllmSampler(model_path, tokenizer, settings, Rollout(memory=memory, eager=True), ranks)
    with open(data, encoding="utf-8") as lines:
        texts = [json.loads(line)["problem"] for line in islice(lines, PROMPTS)]
    if tokenizer.chat_template:
        texts = [
            tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False) for text in texts
        ]
    prompts = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32) for text in texts]
    head, sample = policies.linear_logprob, generator.generate
    rows = []
    for temperature in (1.0, 1.2):
        sync = WeightSync(policy, trainer, generator, prompts, temperature, limit=1.05)
        generator.load(sync.stream())
        generator.reset_cache()
        rollouts: list[Any] = []

        def once(requests: Any, rollouts: list[Any] = rollouts) -> list[Any]:
            rollouts[:] = rollouts or sample(requests)
            return rollouts

        generator.generate = once  # type: ignore[method-assign]
        for trainer_head in ("float32", "bfloat16"):
            wide = trainer_head == "float32"
            policies.linear_logprob = lambda *a, wide=wide, **options: head(*a, **options | {"fp32_logits": wide})  # type: ignore[assignment]
            result = sync.gate(tokens)
            rows.append(
                {
                    "sampler_head": generator.llm.collective_rpc(head_type)[0],
                    "trainer_head": trainer_head,
                    "temperature": temperature,
                    "tokens": result.tokens,
                    "mean_exp_abs_dlogp": result.exp_abs_dlogp,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with `problem`")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "fp32_head.jsonl")
    parser.add_argument("--engine", choices=("float32", "bfloat16"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.engine:
        rows = measure(a.model, a.data, a.tokens, a.engine)
        print("\n" + json.dumps(rows), flush=True)
        os._exit(0)  # vLLM's engine takes the process group down with it
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    a.out.parent.mkdir(parents=True, exist_ok=True)
    for engine in ("float32", "bfloat16"):
        command = [sys.executable, __file__, "--model", str(a.model), "--data", str(a.data), "--tokens", str(a.tokens), "--engine", engine]
        with reserve_port() as reserved:
            port = str(reserved.getsockname()[1])
        done = subprocess.run(command, env=os.environ | alone | {"MASTER_PORT": port}, stdout=subprocess.PIPE, text=True, check=True)
        for row in json.loads(done.stdout.strip().splitlines()[-1]):
            print(f"{row}", flush=True)
            with open(a.out, "a", encoding="utf-8") as file:
                file.write(
                    json.dumps(
                        row
                        | {"model": a.model.name, "dtype": "bfloat16", "machine": machine("cuda" if torch.cuda.is_available() else "cpu")}
                    )
                    + "\n"
                )


if __name__ == "__main__":
    main()
