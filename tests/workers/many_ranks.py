"""One rank after the other of very many: a fake process group answers their collectives, so what a rank computes is its own part alone.

Each starts as `engine/train.py` starts it: ranks, policy with its rows of the weights, trainer, a mini-batch of 32 prompts.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from tiny import fixed_samples, known
from torch.testing._internal.distributed.fake_pg import FakeStore

from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.packing import Sample
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.trainer import Trainer

be_quiet()


def started(folder: Path, rank: int, ranks: int, budget: int) -> dict:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    of = Ranks.start()
    policy = Policy(folder, load_tokenizer(folder), Model(path=str(folder), dtype="float32", max_length=64), of)
    trainer = Trainer(policy, Optim(lr=1e-3, microbatch_tokens=budget, warmup_steps=1), Loss(), 1.0)
    tokens: list[int] = []
    whole = policy.response_loss
    policy.response_loss = lambda batch, *given, **named: tokens.append(batch.tokens) or whole(batch, *given, **named)  # type: ignore[method-assign]
    rows = {name: len(parameter.to_local()) for name, parameter in policy.model.named_parameters()}
    first = {name: parameter.to_local().flatten()[:2].tolist() for name, parameter in policy.model.named_parameters()}
    samples: list[Sample] = fixed_samples(512)
    trainer.train(known(of, *(samples[i : i + 256] for i in (0, 256))))
    dist.destroy_process_group()
    return {"size": of.size, "tokens": tokens, "rows": rows, "first": first}


def main(arguments: dict, out: Path) -> None:
    said = {rank: started(Path(arguments["folder"]), rank, arguments["ranks"], arguments["budget"]) for rank in arguments["of"]}
    out.write_text(json.dumps(said))


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
