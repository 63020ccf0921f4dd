"""One loss and gradient over fixed rollouts, on any number of ranks and with any micro-batch budget; rank 0 writes both; and what
steps of `updates` have said, the model's folder."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny import fixed_samples, known
from updates import updates

from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.experts.balance import LOAD
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.reference import reference_of
from soundrl.engine.trainer import Trainer


def main(arguments: dict, out: Path) -> None:
    ranks = Ranks.start()
    results = []
    for number, case in enumerate(arguments["cases"]):
        folder = Path(case["folder"])
        saved = case.get("save_memory", ())
        model = Model(path=str(folder), dtype=case.get("dtype", "float32"), max_length=128, save_memory=tuple(saved))
        policy = Policy(folder, load_tokenizer(folder), model, ranks)
        kl = case.get("kl", (0.0, "k3", "sharded"))
        loss = Loss(correction=(case.get("correction", "tis"), 0.5, 2.0), kl=tuple(kl), balance=case.get("balance", 0.0))
        trainer = Trainer(policy, Optim(microbatch_tokens=case["budget"]), loss, 0.9)
        everything = fixed_samples()
        token_count = float(sum(len(s.tokens) for s in everything))
        batch = replace(known(ranks, everything)[0].batch, everything=loss.everything)
        if kl[0]:
            reference = reference_of(policy, Path(case["reference"]), kl[2])
            batch.reference_logprobs.update(trainer.logprobs(reference, batch, batch.live([0])))
        batches = list(trainer.packed([batch.trained(i) for i in batch.live([0])]))
        trainer.balance.count(trainer.packed(everything), everything)
        stats = trainer.backward(batches, token_count, trainer.policy_loss)
        gradients = {name: p.grad.full_tensor().double() for name, p in policy.model.named_parameters()}
        trainer.optimizer.zero_grad()
        file = out.with_name(f"{out.stem}-{number}.pt")
        results.append(
            {"loss": stats["loss"], "tokens": stats["tokens"], "kl": stats["reference_kl"], "batches": len(batches), "file": str(file)}
            | {name: value for name, value in stats.items() if name in LOAD}
        )
        if ranks.main:
            torch.save(gradients, file)
    if folder := arguments.get("updates"):
        results.append(updates(ranks, Path(folder)))
    if ranks.main:
        out.write_text(json.dumps(results))
    ranks.barrier()
    ranks.stop()


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
