"""Three steps on made-up rollouts with a scripted judge: digests of the parameters with and without overlap, under shuffled arrivals."""

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace

import torch
from scripted_judge import ScriptedJudge

from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.exchange import exchange
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.refill import refilled
from soundrl.engine.schedule import minibatches
from soundrl.engine.trainer import Trainer
from soundrl.fapo.pending import PendingGroups, done, scored
from soundrl.fapo.records import Outcome, Prompt, Rollout
from soundrl.fapo.rewards import RewardSettings
from soundrl.fapo.task import ReasoningTask

be_quiet()
REWARDS = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=40, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)
STEPS, PROMPTS, SAMPLES, BUDGET = 3, 8, 4, 128
BUDGET_OF_REFILL = 200
SETTINGS = Optim(lr=3e-4, microbatch_tokens=BUDGET, warmup_steps=1)


def rollouts(prompt: Prompt) -> list[Rollout]:
    """The prompt's rollouts, from its id alone."""
    rng = Random(prompt.id)
    out = []
    for sample in range(SAMPLES):
        tokens = tuple(rng.randrange(18) for _ in range(rng.randint(1, 24)))
        out.append(
            Rollout(
                prompt_id=prompt.id,
                sample=sample,
                prompt_tokens=(1, 2, 3),
                tokens=tokens,
                logprobs=tuple(-3 * rng.random() for _ in tokens),
                text="",
                finish_reason="stop",
                policy_version=0,
            )
        )
    return out


def verify(prompt: Prompt, rollout: Rollout):
    share = Random(f"share/{prompt.id}").choice((0.0, 0.4, 0.8, 1.0))  # a quarter of the groups needs no verdict
    return done(Outcome.CORRECT if Random(f"outcome/{prompt.id}/{rollout.sample}").random() < share else Outcome.WRONG)


class Runs:
    """Runs that begin with the same parameters."""

    def __init__(self, ranks: Ranks, folder: Path) -> None:
        self.ranks = ranks
        self.policy = Policy(folder, load_tokenizer(folder), Model(path=str(folder), dtype="float32", max_length=64), ranks)
        self.start_whole = self.whole()
        self.start = [parameter.detach().to_local().clone() for parameter in self.policy.model.parameters()]

    def trainer(self) -> Trainer:
        with torch.no_grad():
            for parameter, value in zip(self.policy.model.parameters(), self.start, strict=True):
                parameter.to_local().copy_(value)
        return Trainer(self.policy, SETTINGS, Loss(), 1.0)

    def digest(self) -> str:
        """Of the parameters of every rank."""
        own = hashlib.sha256()
        for parameter in self.policy.model.parameters():
            own.update(parameter.to_local().detach().numpy().tobytes())
        return " ".join(self.ranks.gather(own.hexdigest()))

    def whole(self) -> list[torch.Tensor]:
        """All parameters, on every rank."""
        return [parameter.detach().full_tensor().clone() for parameter in self.policy.model.parameters()]

    def refilled(self, judge: ScriptedJudge, seed: int, overlap: bool) -> tuple[str, dict[str, float]]:
        """As `run`, with a budget of tokens for groups without signal: the parameters, and what was said, summed over steps. A step's
        replacements are its prompts from number `PROMPTS` on."""
        task, trainer, sums = ReasoningTask(verify, judge, REWARDS), self.trainer(), Counter[str]()
        for step in range(STEPS):
            stream = iter([Prompt(id=f"{step}/{i}", text="", answer="") for i in range(4 * PROMPTS)])

            def sample(prompts: list[Prompt], step: int, into: PendingGroups | None = None) -> PendingGroups:
                own = prompts[self.ranks.rank :: self.ranks.size]
                arriving = [rollout for prompt in own for rollout in rollouts(prompt)]
                Random(seed).shuffle(arriving)
                return task.collect(own, arriving, into=into)

            run = SimpleNamespace(
                config=SimpleNamespace(rollout=SimpleNamespace(refill=BUDGET_OF_REFILL)),
                stream=SimpleNamespace(take=lambda number, stream=stream: list(islice(stream, number))),
                **{"rollouts": sample, "leave": lambda **_: None, "ranks": self.ranks, "at": {"silent": []}},
            )
            prompts = run.stream.take(PROMPTS)
            pending = sample(prompts, step)
            prompts, said = refilled(run, prompts, pending, step)
            if not overlap:
                pending.groups()
            batch = exchange(prompts, pending, self.ranks)
            trainer.train(minibatches(batch, PROMPTS // 2, BUDGET))
            signal = sum(any(batch.advantages[i] for i in group) for group in batch.groups) / PROMPTS
            assert signal == said["reward/groups_with_signal"] and len(prompts) == len(batch.groups) == PROMPTS
            assert all(not group.signal for group in scored(pending.replaced, whole=True))
            sums.update(said)
        judge.close()
        return self.digest(), dict(sums)

    def run(self, judge: ScriptedJudge, seed: int, overlap: bool, backwards: bool = False, sleeps: bool = False) -> tuple[str, int]:
        """Parameters after `STEPS` steps of two mini-batches, and how many groups were still judged when training began. `sleeps`: nothing
        may be asked while rollouts arrive. With overlap the verdicts on a step's first prompt are held back until training begins, or a
        busy machine would let all of them come first."""
        task, trainer, late = ReasoningTask(verify, judge, REWARDS, judge_sleeps=sleeps), self.trainer(), 0
        for step in range(STEPS):
            prompts = [Prompt(id=f"{step}/{i}", text="", answer="") for i in range(PROMPTS)][:: -1 if backwards else 1]
            own = prompts[self.ranks.rank :: self.ranks.size]
            arriving = [rollout for prompt in own for rollout in rollouts(prompt)]
            Random(seed).shuffle(arriving)
            asked = len(judge.asked)
            if overlap:
                judge.hold(own[0].id)
            pending = task.collect(own, arriving)
            new = self.ranks.sum([float(len(judge.asked) - asked)])[0]
            assert (new == 0) is sleeps, "who sleeps is not asked, who does not is"
            if not overlap:
                pending.ask().groups()
            late += sum(not group.ready for group in pending)
            judge.release()
            trainer.train(minibatches(exchange(prompts, pending, self.ranks), PROMPTS // 2, BUDGET))
        judge.close()
        return self.digest(), late

    def released_by_training(self, overlap: bool, deadline: float) -> dict:
        """A judge that holds back the last group's verdicts until the first micro-batch has been trained, and the one after for ever."""
        trained, trainer = threading.Event(), self.trainer()
        held, silent = "p8", "p9"

        def seconds(rollout: Rollout) -> float:
            if rollout.prompt_id == held:
                trained.wait(60)
            return 0.0

        def loss(batch, count):
            result = trainer.policy.response_loss(batch, 1.0, trainer.rule, count)
            trained.set()
            return result

        judge = ScriptedJudge(4, seconds, silent={silent})
        task = ReasoningTask(lambda p, r: done(Outcome.CORRECT if r.sample else Outcome.WRONG), judge, REWARDS, deadline=deadline)
        prompts = [Prompt(id=f"p{i}", text="", answer="") for i in range(10)]
        trainer.policy_loss = loss
        start = time.monotonic()
        pending = task.collect(prompts, [rollout for prompt in prompts for rollout in rollouts(prompt)])
        if not overlap:
            pending.groups()
        trainer.train(minibatches(exchange(prompts, pending, self.ranks), len(prompts), BUDGET))
        groups = pending.groups()
        spent = time.monotonic() - start
        trained.set()
        judge.close()
        timeouts = [sum(v is not None and v.reason == "timeout" for v in group.verdicts) for group in groups]
        return {"seconds": spent, "timeouts": timeouts, "kept": groups[-1].kept, "updates": trainer.updates}


def main(arguments: dict, out: Path) -> None:
    ranks = Ranks.start()
    folder = Path(arguments["folder"])
    runs = Runs(ranks, folder)
    said: dict = {"on": [], "late": [], "steps": STEPS}

    def judge(workers: int, seed: int) -> ScriptedJudge:
        return ScriptedJudge(workers, lambda r: 0.004 * Random(f"{seed}/{r.prompt_id}/{r.sample}").random())

    said["off"] = runs.run(judge(4, 0), 0, overlap=False)
    before, after = runs.start_whole, runs.whole()
    said["moved"] = float(sum((a - b).square().sum() for a, b in zip(after, before, strict=True)) ** 0.5)
    if ranks.main:
        torch.save(after, out.with_suffix(".pt"))
    said["parameters"] = str(out.with_suffix(".pt"))
    for seed in range(arguments["seeds"]):
        for workers in (4,) if seed >= 3 else (1, 4):
            digest, late = runs.run(judge(workers, seed), seed, overlap=True)
            said["on"].append(digest)
            said["late"].append(late)
    said["refilled"] = [runs.refilled(judge(workers, seed), seed, overlap=bool(seed)) for seed, workers in ((0, 4), (1, 1))]
    said["serial"] = runs.run(judge(4, 0), 1, overlap=False, sleeps=True)
    said["backwards"] = runs.run(judge(4, 0), 0, overlap=True, backwards=True)[0]
    if arguments["deadline"]:
        said["released"] = runs.released_by_training(overlap=True, deadline=arguments["deadline"])
        said["held"] = runs.released_by_training(overlap=False, deadline=arguments["deadline"])
    if ranks.main:
        out.write_text(json.dumps(said))
    ranks.barrier()
    ranks.stop()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
