"""Optimizer steps over committed rollouts (tests/golden/rollouts.jsonl) from committed weights: nothing is sampled, so every processor
computes the same but for rounding. Rank 0 writes what each case's training said, and a digest of the parameters after it.

The rollouts are the first step's of a run, made anew where the committed start is (tests/golden/README.md).
"""

import hashlib
import json
import os
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

os.environ.update(json.loads(sys.argv[1]).get("environment", {}))  # before triton is imported, which reads TRITON_INTERPRET then

from transformers import AutoTokenizer

from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.exchange import exchange
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.recipes import RECIPES
from soundrl.engine.schedule import minibatches
from soundrl.engine.task import reward_settings
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.engine.trainer import Trainer
from soundrl.fapo.pending import PendingGroups, done
from soundrl.fapo.records import Outcome, Prompt, Rollout
from soundrl.fapo.task import OracleJudge, ReasoningTask

be_quiet()
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "rollouts.jsonl"
UPDATES = 2


def verify(prompt: Prompt, rollout: Rollout) -> "Future[Outcome]":
    return done(chains.verify(prompt.answer, rollout.text, rollout.finish_reason == "stop"))


def collected(folder: Path, ranks: Ranks, lam: float, most: int | None) -> tuple[list[Prompt], PendingGroups]:
    """All prompts, or so many, and this rank's groups, verified and judged as in a run."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    ids = list(dict.fromkeys(row["prompt_id"] for row in rows))[:most]
    everyone = [chains.ArithSource(int(id_.split(":")[1])).prompt(int(id_.split(":")[2])) for id_ in ids]
    prompts = {prompt.id: prompt for prompt in everyone[ranks.rank :: ranks.size]}
    rollouts = [
        Rollout(
            prompt_id=row["prompt_id"],
            sample=row["sample"],
            prompt_tokens=tuple(tokenizer(prompts[row["prompt_id"]].text)["input_ids"]),
            tokens=tuple(row["tokens"]),
            logprobs=tuple(row["logprobs"]),
            text=row["text"],
            finish_reason=row["finish_reason"],
            policy_version=1,
        )
        for row in rows
        if row["prompt_id"] in prompts
    ]
    config = RECIPES["arith"]()
    task = ReasoningTask(verify, OracleJudge(chains.oracle), reward_settings(replace(config, fapo=replace(config.fapo, lam=lam))))
    return everyone, task.collect(list(prompts.values()), rollouts)


def main(arguments: dict, out: Path) -> None:
    ranks = Ranks.start()
    said = []
    for case in arguments["cases"]:
        folder = Path(case["folder"])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = Model(path=str(folder), dtype="float32", max_length=80, attention=case.get("attention", "triton"))
        policy = Policy(folder, tokenizer, model, ranks)
        settings = Optim(lr=2e-4, adamw=(0.9, 0.999, 0.0), warmup_steps=1, microbatch_tokens=512)
        trainer = Trainer(policy, settings, Loss(**case.get("loss", {})), 1.0)
        prompts, pending = collected(folder, ranks, case.get("lam", 1.0), case.get("prompts"))
        batch = exchange(prompts, pending, ranks)
        parts = minibatches(batch, len(prompts) // UPDATES, settings.microbatch_tokens)
        TIMELINE.begin(ranks.rank)
        trained = trainer.train(parts)
        assert ranks.size > 1 or TIMELINE.waits == [], "every verdict is there already"
        rewards = ranks.sum([sum(sum(g.rewards) for g in pending.groups()), sum(len(g.rewards) for g in pending.groups())])
        full = [parameter.detach().full_tensor() for parameter in policy.model.parameters()]
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in full)).hexdigest()
        norm = sum(float(tensor.double().square().sum()) for tensor in full) ** 0.5
        said.append(trained | {"reward/mean": rewards[0] / rewards[1], "digest": digest, "norm": norm})
    if ranks.main:
        out.write_text(json.dumps(said))
    ranks.barrier()
    ranks.stop()


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
