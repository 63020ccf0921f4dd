"""Optimizer steps on two ranks: several mini-batches, and a NaN that one rank alone gets."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from tiny import fixed_samples, known

from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.packing import deal
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.trainer import NotFiniteError, Trainer


def updates(ranks: Ranks, folder: Path) -> dict:
    policy = Policy(folder, load_tokenizer(folder), Model(path=str(folder), dtype="float32", max_length=128), ranks)
    trainer = Trainer(policy, Optim(lr=1e-3, microbatch_tokens=256, warmup_steps=1), Loss(), 1.0)
    samples = fixed_samples()
    said: dict = {
        "one_minibatch_kl": trainer.train(known(ranks, samples))["loss/kl"],
        "two_minibatches_kl": trainer.train(known(ranks, samples[:12], samples[12:]))["loss/kl"],
    }
    said["updates"] = trainer.updates

    live = [s for s in samples if s.advantage != 0.0]
    broken = [replace(s, advantage=math.nan) if i == 3 else s for i, s in enumerate(samples)]
    said["who has it"] = [samples[3] in [live[i] for i in part] for part in deal([s.length for s in live], ranks.size)]
    before = [p.to_local().clone() for p in policy.model.parameters()]
    moments = [v.to_local().clone() for state in trainer.optimizer.state.values() for k, v in state.items() if k.startswith("exp")]
    stats = trainer.train(known(ranks, broken))
    unchanged = all(torch.equal(a, p.to_local()) for a, p in zip(before, policy.model.parameters(), strict=True))
    after = [v.to_local() for state in trainer.optimizer.state.values() for k, v in state.items() if k.startswith("exp")]
    unchanged = unchanged and all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    said["skipped"], said["unchanged"] = ranks.gather(stats["optim/skipped"]), ranks.gather(unchanged)

    said["no_signal_loss"] = trainer.train(known(ranks, [replace(s, advantage=0.0) for s in samples]))["loss/policy"]
    trainer.updates -= 1
    trainer.train(known(ranks, samples))
    said["finite_step_resets"], said["updates_after"] = trainer.skipped_in_a_row == 0, trainer.updates
    nan = [replace(s, logprobs=(math.nan, *s.logprobs[1:])) if s.advantage and i % 2 else s for i, s in enumerate(samples)]
    said["without_logprob"] = trainer.train(known(ranks, nan))
    said["expected_without"] = sum(math.isnan(s.logprobs[0]) for s in nan)
    message = ""
    for _ in range(3):
        try:
            trainer.train(known(ranks, broken))
        except NotFiniteError as error:
            message = str(error)
    said["stopped"] = ranks.gather(message)
    return said
