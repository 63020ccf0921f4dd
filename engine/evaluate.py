"""Evaluating a policy: any model folder or endpoint on any sets, with pass@k, soundness and intervals; every rollout is kept.

    python -m soundrl.engine.evaluate --model models/Qwen2.5-Math-7B --data aime24 aime25 --preset paper --out runs/eval-base
    python -m soundrl.engine.evaluate --model my-model --urls http://127.0.0.1:8000/v1 --data math500 --samples 4 --out runs/eval-served
    python -m soundrl.engine.evaluate --judge-again runs/eval-base --judge-urls http://127.0.0.1:8001/v1 --judge-model FAPO-GenRM-4B
    python -m soundrl.engine.evaluate --compare runs/eval-base runs/eval-fapo

The judge is the other one's business: `soundrl.genrm.evaluate` judges the *judge*, on solutions whose first wrong step is known.

One process, no FSDP, no optimizer. Seeds follow from seed, problem and sample, so that two calls, a killed one that goes on, and one that
asks in another order give the same rollouts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from soundrl.engine.config import Config, Data, Fapo, Model, Optim, Run
from soundrl.engine.config import Rollout as RolloutSettings
from soundrl.engine.evaluation import again
from soundrl.engine.evaluation.arguments import OPTIONS, SETTING, Arguments
from soundrl.engine.evaluation.kept import Kept, keeps, lacking, unbroken
from soundrl.engine.evaluation.local import Local
from soundrl.engine.evaluation.protocol import Protocol, settled
from soundrl.engine.evaluation.scores import compared, errors_in, tell
from soundrl.engine.evaluation.served import ERROR, Served
from soundrl.engine.evaluation.sets import ProblemSet, check, load_sets
from soundrl.engine.files.underway import Key, RememberingJudge, Underway
from soundrl.engine.judging.judges import BuiltJudge, build_judge
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.ranks import Ranks, alone
from soundrl.engine.samplers.sampler import Draw, Request
from soundrl.engine.task import build_task
from soundrl.fapo.judging import Judge
from soundrl.fapo.printable import one_line, printable
from soundrl.fapo.records import Group, Outcome, Rollout
from soundrl.fapo.task import ReasoningTask
from soundrl.genrm.evaluate import command
from soundrl.genrm.journal import counted
from soundrl.genrm.pool.endpoint import extra_fields
from soundrl.genrm.pool.judge import EndpointJudge

ROOM = 1 << 20  # tokens, until lengths are known
MANY = 100  # responses from which on it is said how many have come


class Evaluation:
    """One, of checked arguments, written to `kept`."""

    def __init__(self, arguments: Arguments, protocol: Protocol, kept: Kept, ranks: Ranks) -> None:
        self.arguments, self.protocol, self.kept, self.ranks = arguments, protocol, kept, ranks
        a, on_cpu = arguments, ranks.device.type == "cpu"
        dtype = a.dtype or ("float32" if on_cpu else "bfloat16")
        self.model = Model(path=a.model, dtype=dtype, max_length=ROOM, rope_base_length=a.rope_base_length)
        self.memory, self.eager = a.memory or (1.0 if on_cpu else 0.85), a.eager or on_cpu
        extra = extra_fields(a.body, "--body")
        self.policy = (
            Served(a.urls, a.model, concurrency=a.concurrency, deadline=a.deadline, extra=extra, allow_http=a.allow_http)
            if a.urls
            else Local(self.model, a.engine, ranks)
        )
        self.judge: EndpointJudge | None = None

    def config_of(self, place: str) -> Config:
        """A run on one set; its lengths are known when its prompts are."""
        a, protocol = self.arguments, self.protocol
        data = {name: getattr(a, name) for name in ("columns", "form", "verifier", "reward", "instruction", "skip_unusable")}
        try:
            return Config(
                model=self.model,
                data=Data(train=(place,), test=(place,), test_rows=a.rows, **data),
                rollout=RolloutSettings(
                    engine=a.engine, max_new_tokens=protocol.max_new_tokens or 1, memory=self.memory, eager=self.eager, turns=a.turns
                ),
                optim=Optim(microbatch_tokens=ROOM),
                fapo=Fapo(lam=0.0),  # nothing is trained, so nobody needs a judge
                genrm=a.genrm,
                run=Run(
                    name=self.kept.path.name,
                    folder=str(self.kept.path.parent),
                    steps=0,
                    seed=a.seed,
                    eval_sampling=(protocol.samples, protocol.temperature, protocol.top_p),
                ),
            )
        except ValueError as error:
            raise ValueError(SETTING.sub(lambda found: OPTIONS[found[1]], str(error))) from None

    def __call__(self) -> dict[str, Any]:
        """The scores."""
        a, policy = self.arguments, self.policy
        errors = errors_in(a.judge_errors) if a.judge_errors else None
        sets, left_out = load_sets(a.data, a.data_dir, self.config_of, policy.tokenizer)
        try:
            asked = self.protocol.max_new_tokens
            beside = self.kept.path.with_name(f"{self.kept.path.name}.left_out.jsonl")
            for line in check(sets, left_out, lambda part: policy.encoder(part, asked), beside):
                say(line)
            self.length, self.new_tokens = policy.lengths(sets, asked)
            if a.judging == "endpoint":
                self.judge = a.endpoint_judge()
                self.judge.check()
                say(f"the judge is asked by the prompt {self.judge.asked.name}, {self.judge.because}")
            made_from = self.made_from(sets)
            self.kept.begin(self.config(sets), made_from)
            say(f"{self.kept.path}: {', '.join(f'{part.name} {len(part.prompts)} × {self.samples(part)}' for part in sets)}, {self.said()}")
            self.checked = False
            found = {part.name: self.groups(part, sets) for part in sets}
        finally:
            for part in sets:
                part.environment.close()
        return tell(self.kept, sets, found, made_from, errors)

    def samples(self, part: ProblemSet) -> int:
        return self.protocol.samples_of(part.name)

    def said(self) -> str:
        p = self.protocol
        how = "greedy" if p.temperature == 0 else f"temperature {p.temperature:g}, top-p {p.top_p:g}"
        return f"{how}, {self.new_tokens} new tokens at most, judge {self.arguments.judging}"

    def config(self, sets: Sequence[ProblemSet]) -> Config:
        """What stands in config.json: of the first set, with all of them under `data.test`."""
        first = sets[0].config
        return replace(
            first,
            model=replace(first.model, max_length=self.length),
            data=replace(first.data, test=tuple(dict.fromkeys(part.config.data.test[0] for part in sets))),
            rollout=replace(first.rollout, max_new_tokens=self.new_tokens),
        )

    def made_from(self, sets: Sequence[ProblemSet]) -> dict[str, Any]:
        """What must be the same for an evaluation to go on, by content."""
        a, p, judge = self.arguments, self.protocol, self.judge
        sampling = {
            "seed": a.seed,
            "temperature": p.temperature,
            "top_p": p.top_p,
            "max_new_tokens": self.new_tokens,
            "turns": list(a.turns),
        }
        who = a.judging if judge is None else a.judge_stamp(judge)
        checked = {"sampling": sampling, "verifier": a.verifier, "reward": list(a.reward)}
        of_sets = {p.name: {"source": p.source, "samples": self.samples(p), "rows": len(p.prompts), "sha256": p.sha256} for p in sets}
        return self.policy.made_from | checked | {"judge": who, "sets": of_sets}

    def groups(self, part: ProblemSet, sets: Sequence[ProblemSet]) -> list[Group]:
        """A set's groups, in the order of its problems: what is known already, and the rest sampled; verified and judged as it comes."""
        p, config, underway = self.protocol, self.config(sets), self.kept.underway(part)
        draw = Draw(
            run_seed=self.arguments.seed,
            phase="eval",
            step=0,
            temperature=p.temperature,
            max_new_tokens=self.new_tokens,
            top_p=p.top_p,
        )
        requests = draw.requests([(prompt.id, part.tokens[prompt.id]) for prompt in part.prompts], self.samples(part))
        known = self.kept.known(part, underway)
        missing = lacking(requests, known, self.policy.part)
        if known:
            say(f"{part.name}: {len(known)} of {len(requests)} responses are there")
        if missing and not self.checked:
            self.policy.check(sets)
            self.checked = True
        task = build_task(part.config, part.environment, BuiltJudge(self.judge_of(part, underway)))
        assert isinstance(task, ReasoningTask)
        verify = task.verify
        task.verify = lambda prompt, rollout: Outcome.NO_ANSWER if rollout.finish_reason.startswith(ERROR) else verify(prompt, rollout)
        sampled = self.sampled(part, config, missing, underway)
        try:
            pending = task.collect(part.prompts, chain(known.values(), sampled))
            groups = pending.groups(measuring=True)
        finally:
            sampled.close()
            underway.flush()
            underway.close()
        self.kept.save(part, groups)
        underway.end()
        return groups

    def sampled(self, part: ProblemSet, config: Config, missing: Sequence[Request], underway: Underway) -> Generator[Rollout]:
        """Each as it comes, once it is kept; where sampling is broken off, what has come by then is kept as well."""
        rollouts, kept = self.policy.sample(part, config, missing), set[Key]()
        try:
            for rollout in counted(rollouts, len(missing), f"responses to {part.name}") if len(missing) >= MANY else rollouts:
                self.keep(rollout, underway, kept)
                yield rollout
        finally:
            rollouts.close()
            for rollout in self.policy.come:
                self.keep(rollout, underway, kept)

    def keep(self, rollout: Rollout, underway: Underway, kept: set[Key]) -> None:
        """Once, whole or not at all."""
        if (key := (rollout.prompt_id, rollout.sample)) in kept or not keeps(rollout):
            return
        with unbroken():
            underway.add(rollout)
            kept.add(key)
            # Each has cost somebody something; and no verdict may be there before what it is of.
            if self.policy.remote or self.judge is not None:
                underway.flush()

    def judge_of(self, part: ProblemSet, underway: Underway) -> Judge | None:
        if self.judge is None:
            return build_judge(part.config, part.environment, self.ranks, say).judge
        self.judge.split = part.environment.split
        return RememberingJudge(self.judge, underway)

    def close(self) -> None:
        self.policy.close()
        if self.judge is not None:
            self.judge.close()


def say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def main(arguments: Arguments) -> dict[str, Any]:
    """The scores, or what is compared. ValueError, one line, for a mistake of the user's."""
    a = arguments
    a.check()
    if a.compare is not None:
        return compared(*a.compare)
    if a.judge_again is not None:
        return again.judge_again(a)
    if missing := [name for name in ("model", "data", "out") if not getattr(a, name)]:
        raise ValueError(f"--{missing[0]} is missing; an evaluation needs --model, --data and --out (or --judge-again, or --compare)")
    protocol = settled(a.preset, a.samples, a.temperature, a.top_p, a.max_new_tokens)
    assert a.out is not None
    if (size := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(f"an evaluation is one process, but {size} were started; serve the model on all GPUs, and name it by --urls")
    try:
        with alone() as ranks, Kept(a.out, ranks) as kept:
            evaluation = Evaluation(a, protocol, kept, ranks)
            try:
                return evaluation()
            finally:
                evaluation.close()
    except OSError as error:  # transformers raises plain ones, with advice as text
        place = f"{error.filename}: {error.strerror}" if error.filename else one_line(str(error))
        raise ValueError(f"{place}; what has come is kept, and the same command goes on") from error


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what has come is written
    be_quiet()
    try:
        command(main, Arguments)
    except KeyboardInterrupt:
        say("stopped; what has come is kept, and the same command goes on")
        sys.exit(130)
