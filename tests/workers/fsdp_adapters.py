"""`token_logprobs` and `rl_loss` of models that FSDP2 has sharded, on every rank a part of the batch: how far from one process?

For log-probabilities the last rank has no trained token. Writes {"model place of the head what": difference}.
"""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes
from transformers import AutoConfig, AutoModelForCausalLM

from soundrl.kernels.adapters.causal_lm import Rollouts, rl_loss, token_logprobs
from soundrl.kernels.loss_rule import LossRule

SMALL = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
RULE = LossRule(dual_clip=float("inf"))


def model_of(kind: str):
    torch.manual_seed(2)
    settings = SMALL | {"num_key_value_heads": 1, "initializer_range": 0.4, "tie_word_embeddings": kind == "qwen2"}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).float()


def shard(model, place: str):
    """`own`: the head is a group for itself; `root`: it lies in the root's, with embedding and norm."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if place == "own":
        tied = model.config.tie_word_embeddings  # such layers must share a group
        fully_shard([model.model.embed_tokens, model.lm_head] if tied else model.lm_head, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def part_of(what: str, model, rows: slice, tokens: float):
    generator = torch.Generator().manual_seed(4)
    ids, noise = torch.randint(31, (4, 7), generator=generator), torch.randn(4, 7, generator=generator)
    first = {"loss": [2, 4, 5, 7], "logprob": [2, 4, 7, 7]}[what]  # of the trained tokens of each row; from 7 on there are none
    mask = (torch.arange(7) >= torch.tensor(first)[:, None])[rows]
    if what == "logprob":
        scored = token_logprobs(model, ids[rows], None, mask)
        return (noise[rows] * (scored.logprob + 0.1 * scored.entropy)).sum() / tokens
    rollouts = Rollouts(ids=ids[rows], mask=mask, advantages=noise[rows, 0], old_logprob=-3 + 0.3 * noise[rows])
    return rl_loss(model, rollouts, tokens, rule=RULE)[0]


def compare(rank: int, world: int, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=world)
    found = {}
    for kind in ("llama", "qwen2"):
        alone = model_of(kind)
        for what in ("loss", "logprob"):
            alone.zero_grad()
            part_of(what, alone, slice(0, 4), 8.0).backward()
            wanted = {name: p.grad for name, p in alone.named_parameters()}
            for place in ("own", "root"):
                model = shard(copy.deepcopy(alone), place)
                model.zero_grad()
                each = 4 // world
                part_of(what, model, slice(rank * each, (rank + 1) * each), 8.0 / world).backward()
                gaps = [(p.grad.full_tensor() - wanted[name]).abs().max().item() for name, p in model.named_parameters()]
                found[f"{kind} {place} {what}"] = max(gaps)
    if rank == 0:
        out.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    ranks = json.loads(sys.argv[1])["ranks"]
    # Forked, so that torch and transformers are imported once.
    start_processes(compare, (ranks, Path(sys.argv[2])), ranks, start_method="fork")
