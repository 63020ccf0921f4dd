"""One loss and gradient over fixed rollouts, on any number of ranks and with any micro-batch budget; rank 0 writes both."""

import json
import sys
from pathlib import Path

import torch
from tiny import fixed_samples

from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.trainer import Trainer


def main(arguments: dict, out: Path) -> None:
    ranks = Ranks.start()
    results = []
    for number, case in enumerate(arguments["cases"]):
        folder = Path(case["folder"])
        model = Model(
            path=str(folder), dtype=case.get("dtype", "float32"), max_length=128, activation_checkpointing=case.get("checkpointing", False)
        )
        policy = Policy(folder, load_tokenizer(folder), model, ranks)
        trainer = Trainer(policy, Optim(microbatch_tokens=case["budget"]), Loss(correction=case.get("correction", "tis")), 0.9)
        everything = fixed_samples()
        token_count = float(sum(len(s.tokens) for s in everything))
        batches = list(trainer.packed([s for s in everything if s.advantage != 0.0]))
        stats = trainer.backward(batches, token_count, trainer.policy_loss)
        gradients = {name: p.grad.full_tensor().double() for name, p in policy.model.named_parameters()}
        trainer.optimizer.zero_grad()
        file = out.with_name(f"{out.stem}-{number}.pt")
        results.append({"loss": stats["loss"], "tokens": stats["tokens"], "batches": len(batches), "file": str(file)})
        if ranks.main:
            torch.save(gradients, file)
    if ranks.main:
        out.write_text(json.dumps(results))
    ranks.barrier()
    ranks.stop()


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
