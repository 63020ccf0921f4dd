"""How much of judging does a step hide? Real training of the embedded world's model, a scripted judge that only sleeps, one rank.

    python bench/overlap.py                       # 256 rollouts in 32 groups, judging half as long as training; about a minute

Every rollout is there when the step begins, so nothing is hidden behind sampling: the hardest case. The judge answers one question at a
time; its latencies are log-normal and scaled so that all questions of a step together take `ratio` × the training time measured first.
Three modes take turns in one process: verdicts known in advance, overlapped, serial (every verdict before the first forward pass). All
begin with the same weights and no moments, and must end with the same weights and moments, bit for bit. Appends a JSON line with hardware,
versions and date to bench/results/overlap.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import tyro
from torch.distributed.tensor import DTensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "workers"))
from scripted_judge import ScriptedJudge  # type: ignore[import-not-found]  # noqa: E402

from soundrl.engine.encode import Encoder  # noqa: E402
from soundrl.engine.environments.arithmetic.chains import ArithSource  # noqa: E402
from soundrl.engine.environments.arithmetic.models import write_arith_model  # noqa: E402
from soundrl.engine.exchange import exchange  # noqa: E402
from soundrl.engine.files.model_folder import load_tokenizer  # noqa: E402
from soundrl.engine.launch.launch import be_quiet  # noqa: E402
from soundrl.engine.policy import Policy  # noqa: E402
from soundrl.engine.ranks import Ranks, alone  # noqa: E402
from soundrl.engine.recipes import arith  # noqa: E402
from soundrl.engine.schedule import minibatches  # noqa: E402
from soundrl.engine.task import reward_settings  # noqa: E402
from soundrl.engine.telemetry.timeline import TIMELINE  # noqa: E402
from soundrl.engine.trainer import Trainer  # noqa: E402
from soundrl.fapo.pending import done  # noqa: E402
from soundrl.fapo.records import Outcome, Prompt, Rollout  # noqa: E402
from soundrl.fapo.task import ReasoningTask  # noqa: E402


@dataclass(frozen=True)
class Arguments:
    groups: int = 32
    samples: int = 8
    microbatch_tokens: int = 1024
    """Tokens packed into one forward pass."""
    ratio: float = 0.5
    """Judging time ÷ training time."""
    spread: float = 0.8
    """Standard deviation of the logarithm of a latency."""
    repeats: int = 7
    """Steps of each mode, in turns."""
    correct: float = 0.6
    """Share of correct rollouts; only these are judged."""
    threads: int = 1
    """Of torch."""


class Bench:
    def __init__(self, arguments: Arguments, folder: Path, ranks: Ranks) -> None:
        self.arguments, self.ranks, self.config = arguments, ranks, arith()
        write_arith_model(folder, 0)
        tokenizer = load_tokenizer(folder)
        self.policy = Policy(folder, tokenizer, self.config.model, ranks)
        self.start = [parameter.detach().clone() for parameter in self.policy.model.parameters()]
        self.settings = type(self.config.optim)(lr=2e-4, microbatch_tokens=arguments.microbatch_tokens)
        encode, source = Encoder(tokenizer, self.config.max_prompt_tokens), ArithSource(0)
        self.prompts: list[Prompt] = []
        self.rollouts: list[Rollout] = []
        for i in range(arguments.groups):
            demonstrations = [source.demonstration(arguments.samples * i + sample, True) for sample in range(arguments.samples)]
            prompt = demonstrations[0][0]
            self.prompts.append(prompt)
            for sample, (_, solution) in enumerate(demonstrations):
                assert isinstance(solution, str)
                tokens = encode.response(solution)
                self.rollouts.append(
                    Rollout(
                        prompt_id=prompt.id,
                        sample=sample,
                        prompt_tokens=encode(prompt),
                        tokens=tokens,
                        logprobs=np.full(len(tokens), -1.0),
                        text=solution,
                        finish_reason="stop",
                        policy_version=0,
                    )
                )
        self.judged = [rollout for rollout in self.rollouts if self.outcome(rollout) is Outcome.CORRECT]

    def outcome(self, rollout: Rollout) -> Outcome:
        return Outcome.CORRECT if Random(self.key(rollout)).random() < self.arguments.correct else Outcome.WRONG

    @staticmethod
    def key(rollout: Rollout) -> str:
        return f"{rollout.prompt_id}/{rollout.sample}"

    def begin(self) -> None:
        """The weights that it began with, and no moments."""
        with torch.no_grad():
            for parameter, value in zip(self.policy.model.parameters(), self.start, strict=True):
                parameter.copy_(value)
        self.trainer = Trainer(self.policy, self.settings, self.config.loss, 1.0)

    def digest(self) -> str:
        """Of weights and moments."""
        seal = hashlib.sha256()
        for parameter in self.policy.model.parameters():
            for tensor in (parameter, *self.trainer.optimizer.state[parameter].values()):
                seal.update((tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().numpy().tobytes())
        return seal.hexdigest()

    def step(self, overlap: bool, judging: float, repeat: int = 0) -> tuple[float, float]:
        """Seconds of a step, and the share of judging hidden; `judging`: seconds that all questions of the step take together, in parts
        that follow from `repeat`."""
        latency = {self.key(r): Random(f"{self.key(r)}latency{repeat}").lognormvariate(0, self.arguments.spread) for r in self.judged}
        scale = judging / sum(latency.values())
        judge = ScriptedJudge(1, lambda rollout: scale * latency[self.key(rollout)])
        task = ReasoningTask(lambda prompt, rollout: done(self.outcome(rollout)), judge, reward_settings(self.config))
        self.begin()
        TIMELINE.begin(0)
        start = time.perf_counter()
        with TIMELINE("step"):
            pending = task.collect(self.prompts, self.rollouts)
            if not overlap or judging == 0.0:  # known in advance: what is left of the wait are 256 hand-overs between threads
                with TIMELINE("judge_wait"):
                    pending.groups()
            if judging == 0.0:
                start = time.perf_counter()
            batch = exchange(self.prompts, pending, self.ranks)
            parts = minibatches(batch, len(self.prompts), self.arguments.microbatch_tokens)
            self.trainer.train(parts)
        seconds = time.perf_counter() - start
        share = TIMELINE.judged(pending.calls(), self.ranks).get("genrm/overlap", 0.0)
        judge.close()
        return seconds, share


MODES = {"known": (True, 0.0), "overlap": (True, 1.0), "serial": (False, 1.0)}


def measured(ratio: float, repeats: int, arguments: Arguments | None = None) -> list[dict[str, Any]]:
    """Rows of `bench/science/claim.py`, of start `timing`: for each repeat (its `seed`) arms `overlap/<ratio>` and `serial/<ratio>`, with
    `after`: `seconds` of the step, `x_known` (÷ those of the same repeat with all verdicts known), `hidden` (share of judging). In this
    process, alone. RuntimeError where a mode has trained something else. The machine should have nothing else to do."""
    arguments = replace(arguments or Arguments(), ratio=ratio, repeats=repeats)
    rows: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder, alone() as ranks:
        bench = Bench(arguments, Path(folder), ranks)
        bench.step(True, 0.0)
        judging = ratio * statistics.median(bench.step(True, 0.0)[0] for _ in range(3))
        for repeat in range(repeats):
            found, ends = dict[str, tuple[float, float]](), dict[str, str]()
            turn = repeat % len(MODES)  # nobody is always the first
            for mode in [*MODES][turn:] + [*MODES][:turn]:
                overlap, factor = MODES[mode]
                found[mode] = bench.step(overlap, factor * judging, repeat)
                ends[mode] = bench.digest()
            if len(set(ends.values())) > 1:
                raise RuntimeError(f"the modes have trained different weights in repeat {repeat}: {ends}")
            for mode in ("overlap", "serial"):
                seconds, hidden = found[mode]
                arm = f"{mode}/{ratio:g}"
                after = {"seconds": seconds, "x_known": seconds / found["known"][0], "hidden": hidden}
                said = {"judging": judging, "questions": len(bench.judged), "digest": ends[mode][:16]}
                rows.append(
                    {"run": f"timing/{arm}/{repeat}", "start": "timing", "arm": arm, "seed": repeat, "settings": said, "after": after}
                )
    torch.set_num_threads(before)
    return rows


def main(arguments: Arguments) -> None:
    be_quiet()
    rows = measured(arguments.ratio, arguments.repeats, arguments)
    record: dict[str, object] = {"judging_s": round(rows[0]["settings"]["judging"], 3), "questions": rows[0]["settings"]["questions"]}

    def middle(mode: str, name: str) -> float:
        return statistics.median(row["after"][name] for row in rows if row["arm"].startswith(mode))

    known = statistics.median(row["after"]["seconds"] / row["after"]["x_known"] for row in rows)
    record |= {"known_s": round(known, 3), "known_x": 1.0}
    print(f"known       {known:6.2f} s")
    for mode, name in (("overlap", "overlapped"), ("serial", "serial")):
        seconds, times, hidden = (middle(mode, measure) for measure in ("seconds", "x_known", "hidden"))
        record |= {f"{name}_s": round(seconds, 3), f"{name}_x": round(times, 3)}
        record["hidden" if mode == "overlap" else "hidden_serial"] = round(hidden, 4)
        print(f"{name:<11} {seconds:6.2f} s = {times:.3f} × known   judging hidden {hidden:.1%}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    stamp = {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }
    with (ROOT / "bench" / "results" / "overlap.jsonl").open("a") as file:
        file.write(json.dumps(stamp | {"settings": vars(arguments)} | record) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
