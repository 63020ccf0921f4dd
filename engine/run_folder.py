"""The memory of a run: `runs/<name>/` with config.json, metrics.jsonl, trace.json and every rollout; TensorBoard where it is installed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from soundrl.engine.config import Config
from soundrl.engine.timeline import TraceFile
from soundrl.fapo.records import Group


class RunFolder:
    """Written by rank 0 alone; every line is flushed, so that a killed run keeps what it has done."""

    def __init__(self, config: Config, writes: bool) -> None:
        self.path = Path(config.run.folder) / config.run.name
        self.writes = writes
        self.metrics = self.board = self.trace = None
        if not writes:
            return
        if (self.path / "metrics.jsonl").exists():
            # Nothing is overwritten: the earlier run of this name moves aside, numbered.
            number = next(n for n in range(1, 10_000) if not self.path.with_name(f"{self.path.name}.{n}").exists())
            self.path.rename(self.path.with_name(f"{self.path.name}.{number}"))
        (self.path / "rollouts").mkdir(parents=True, exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(config.as_dict(), indent=2) + "\n")
        self.metrics = (self.path / "metrics.jsonl").open("a")
        self.trace = TraceFile(self.path / "trace.json")
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
                        "logprobs": [round(value, 6) if math.isfinite(value) else None for value in rollout.logprobs],
                    }
                    file.write(json.dumps(row) + "\n")
        os.replace(beside, target)

    def save_trace(self, events: Iterable[dict[str, Any]]) -> None:
        """Events of any rank, see `soundrl.engine.timeline`."""
        if self.trace is not None:
            self.trace.add(events)

    def close(self) -> None:
        for sink in (self.metrics, self.board, self.trace):
            if sink is not None:
                sink.close()
