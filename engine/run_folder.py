"""The memory of a run: `runs/<name>/` with config.json, metrics.jsonl and every rollout; TensorBoard where it is installed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from soundrl.engine.config import Config
from soundrl.fapo.records import Group


class RunFolder:
    """Written by rank 0 alone; every line is flushed, so that a killed run keeps what it has done."""

    def __init__(self, config: Config, writes: bool) -> None:
        self.path = Path(config.run.folder) / config.run.name
        self.writes = writes
        self.metrics = self.board = None
        if not writes:
            return
        if (self.path / "metrics.jsonl").exists():
            # Nothing is overwritten: the earlier run of this name moves aside, numbered.
            number = next(n for n in range(1, 10_000) if not self.path.with_name(f"{self.path.name}.{n}").exists())
            self.path.rename(self.path.with_name(f"{self.path.name}.{number}"))
        (self.path / "rollouts").mkdir(parents=True, exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(config.as_dict(), indent=2) + "\n")
        self.metrics = (self.path / "metrics.jsonl").open("a")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(self.path / "tensorboard"))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One object a step; keys are those of DESIGN §7. Not-finite values are written as null: JSON has no NaN."""
        if self.metrics is None:
            return
        clean = {k: (v if math.isfinite(v) else None) for k, v in metrics.items()}
        self.metrics.write(json.dumps({"step": step, **clean}) + "\n")
        self.metrics.flush()
        if self.board is not None:
            for name, value in metrics.items():
                self.board.add_scalar(name, value, step)

    def save_rollouts(self, step: int, groups: Sequence[Group]) -> None:
        """Every rollout of a step with outcome, verdict, reward and advantage, an object a line."""
        if not self.writes:
            return
        target = self.path / "rollouts" / f"step-{step:06d}.jsonl"
        beside = target.with_suffix(".part")
        with beside.open("w") as file:
            for group in groups:
                for i, rollout in enumerate(group.rollouts):
                    verdict = group.verdicts[i]
                    row = {
                        "prompt_id": rollout.prompt_id,
                        "sample": rollout.sample,
                        "prompt": group.prompt.text,
                        "answer": group.prompt.answer,
                        "text": rollout.text,
                        "outcome": group.outcomes[i].value,
                        "verdict": None if verdict is None else {"kind": verdict.kind, "step": verdict.step, "reason": verdict.reason},
                        "reward": group.rewards[i],
                        "advantage": group.advantages[i],
                        "kept": group.kept[i],
                        "finish_reason": rollout.finish_reason,
                        "policy_version": rollout.policy_version,
                        "tokens": rollout.tokens,
                        "logprobs": [round(value, 6) for value in rollout.logprobs],
                    }
                    file.write(json.dumps(row) + "\n")
        os.replace(beside, target)

    def close(self) -> None:
        for sink in (self.metrics, self.board):
            if sink is not None:
                sink.close()


class Phases:
    """Seconds by phase: of the step under way and of the whole run. What a phase opens within itself (a wait for verdicts while training)
    is not counted in it; `step` alone contains others."""

    def __init__(self) -> None:
        self.step: dict[str, float] = {}
        self.total: dict[str, float] = {}
        self.within: list[float] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self.within.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - start
            inner = self.within.pop()
            if self.within:
                self.within[-1] += whole
            spent = whole if name == "step" else whole - inner
            self.step[name] = self.step.get(name, 0.0) + spent
            self.total[name] = self.total.get(name, 0.0) + spent

    def take(self) -> dict[str, float]:
        """`time/<phase>` of the step that ends here."""
        out = {f"time/{name}": seconds for name, seconds in self.step.items()}
        self.step = {}
        return out

    def spent(self) -> dict[str, float]:
        """Seconds of the whole run by phase, without `step`, which contains others."""
        return {name: seconds for name, seconds in self.total.items() if name != "step"}
