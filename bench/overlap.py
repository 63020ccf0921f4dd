"""How much of judging does a step hide? Real training of the embedded world's model, a scripted judge that only sleeps, one rank.

    python bench/overlap.py                       # 256 rollouts in 32 groups, judging half as long as training; about a minute

Every rollout is there when the step begins, so nothing is hidden behind sampling: the hardest case. The judge answers one question at a
time; its latencies are log-normal and scaled so that all questions of a step together take `ratio` × the training time measured first.
Three modes take turns in one process: verdicts known in advance, overlapped, serial (every verdict before the first forward pass). Appends
a JSON line with hardware, versions and date to bench/results/overlap.jsonl.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random

import numpy as np
import torch
import tyro

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
from soundrl.engine.ranks import Ranks  # noqa: E402
from soundrl.engine.recipes import arith  # noqa: E402
from soundrl.engine.schedule import minibatches  # noqa: E402
from soundrl.engine.task import reward_settings  # noqa: E402
from soundrl.engine.timeline import TIMELINE  # noqa: E402
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
    """Steps of each mode, in turns; the first is not counted."""
    correct: float = 0.6
    """Share of correct rollouts; only these are judged."""
    threads: int = 1
    """Of torch."""


class Bench:
    def __init__(self, arguments: Arguments, folder: Path) -> None:
        self.arguments, self.ranks, self.config = arguments, Ranks.start(), arith()
        write_arith_model(folder, 0)
        tokenizer = load_tokenizer(folder)
        self.trainer = Trainer(Policy(folder, tokenizer, self.config.model, self.ranks), self.config.optim, self.config.loss, 1.0)
        self.trainer.settings = self.settings = type(self.config.optim)(lr=2e-4, microbatch_tokens=arguments.microbatch_tokens)
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

    def step(self, overlap: bool, judging: float) -> tuple[float, float]:
        """Seconds of a step, and the share of judging hidden; `judging`: seconds that all questions of the step take together."""
        latency = {self.key(r): Random(self.key(r) + "latency").lognormvariate(0, self.arguments.spread) for r in self.judged}
        scale = judging / sum(latency.values())
        judge = ScriptedJudge(1, lambda rollout: scale * latency[self.key(rollout)])
        task = ReasoningTask(lambda prompt, rollout: done(self.outcome(rollout)), judge, reward_settings(self.config))
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


def main(arguments: Arguments) -> None:
    be_quiet()
    torch.set_num_threads(arguments.threads)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
    modes = {"known": (True, 0.0), "overlapped": (True, 1.0), "serial": (False, 1.0)}
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    shares: dict[str, list[float]] = {mode: [] for mode in modes}
    bench.step(True, 0.0)
    judging = arguments.ratio * statistics.median(bench.step(True, 0.0)[0] for _ in range(3))
    for _ in range(arguments.repeats):
        for mode, (overlap, factor) in modes.items():
            spent, share = bench.step(overlap, factor * judging)
            seconds[mode].append(spent)
            shares[mode].append(share)
    known = statistics.median(seconds["known"])
    record: dict[str, object] = {"judging_s": round(judging, 3), "questions": len(bench.judged)}
    for mode in modes:
        middle = statistics.median(seconds[mode])
        record |= {f"{mode}_s": round(middle, 3), f"{mode}_x": round(middle / known, 3)}
        hidden = f"   judging hidden {statistics.median(shares[mode]):.1%}" if mode != "known" else ""
        print(f"{mode:<11} {middle:6.2f} s = {middle / known:.3f} × known{hidden}")
    record |= {"hidden": round(statistics.median(shares["overlapped"]), 4), "hidden_serial": round(statistics.median(shares["serial"]), 4)}
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
    bench.ranks.stop()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
