"""What `real_text.py` does how much of: its arguments, presets of them, and the seconds that they will take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
"""To start a run or a server."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    model: Path = Path("models/smollm2")
    """Folder of the instruct model, the judge's start and the policy's."""
    data: Path = Path("../shared/data")
    """Folder with gsm8k-train.jsonl, gsm8k-test.jsonl and processbench/gsm8k.json."""
    out: Path = Path("runs/science/text")
    """Folder of the work; what was begun there goes on."""
    results: Path = ROOT / "bench" / "results" / "real_text.jsonl"
    """Where a row a stage is added."""
    hours: float = 8.0
    """All stages together; the last is left out where it does not fit."""
    seed: int = 0
    problems: int
    """GSM8K training problems: flaws are planted into their solutions, and the policy learns these."""
    critic_steps: int
    """Warm-start steps of the judge."""
    policy_steps: int
    """Warm-start steps of the policy."""
    batch: int = 16
    """Rows of a warm-start step."""
    lr: float = 1e-4
    """Of both warm starts."""
    rows: int
    """Rows of ProcessBench, drawn by the seed (its file has the wrong ones first), and of planted ones; 0 = all (planted: 400)."""
    critique_tokens: int
    """Longest critique."""
    test_rows: int
    """GSM8K test problems that the policy solves."""
    samples: int
    """Solutions of each."""
    solution_tokens: int
    """Longest solution."""
    rl_steps: int
    """Of FAPO and of GRPO."""
    rl_prompts: int = 16
    """Prompts a step, each with `rl_samples` samples."""
    rl_samples: int = 8
    dtype: str = "float32"
    """float32 or bfloat16, which CPUs without AMX multiply slowly."""
    threads: int = 2
    """CPU threads of a run, and servers of the judge, a thread each (on a GPU one server)."""


SMOKE = Arguments(
    problems=40, critic_steps=5, policy_steps=5, batch=4, rows=8, critique_tokens=128, test_rows=4, samples=2, solution_tokens=96,
    rl_steps=1, rl_prompts=2, rl_samples=2, threads=1,
)  # fmt: skip
NIGHT = Arguments(
    problems=2000,
    critic_steps=100,
    policy_steps=120,
    rows=0,
    critique_tokens=192,
    test_rows=300,
    samples=4,
    solution_tokens=192,
    rl_steps=4,
)
GPU = replace(
    NIGHT, problems=0, critic_steps=1500, policy_steps=1400, batch=32, critique_tokens=256, test_rows=0, samples=4, solution_tokens=320,
    rl_steps=40, rl_prompts=64, dtype="bfloat16", threads=1, hours=1.0,
)  # fmt: skip
PRESETS = {"smoke": ("minutes, to see that it works", SMOKE), "cpu": ("a night on two cores", NIGHT), "gpu": ("minutes on one GPU", GPU)}


def estimate(a: Arguments, said: dict[str, Any]) -> dict[str, float]:
    """Seconds of the stages to come, by what the stage `speed` has found: reading a token costs a third of training on it; all samples are
    as long as they may be, but for the judge's own critiques."""
    trained, sampled, tokens = said["trained a second"], said["sampled a second"], said["tokens"]
    critic_row, rows = tokens["judge's prompt"] + tokens["critique"], 2 * (a.rows or 400)
    read = 2 * rows * (tokens["judge's prompt"] / trained / 3)
    rollouts = a.rl_prompts * a.rl_samples
    tests = (a.test_rows or 1319) * a.samples * a.solution_tokens / sampled
    return {
        "judge": START_SECONDS + a.critic_steps * a.batch * critic_row / trained,
        "benchmark": 4 * START_SECONDS + 2 * read + 2 * rows * (a.critique_tokens + tokens["critique"]) / sampled,
        "policy": START_SECONDS + a.policy_steps * a.batch * tokens["solution"] / trained,
        "flawed": START_SECONDS + tests,
        "pair": 2 * (START_SECONDS + tests + a.rl_steps * rollouts * a.solution_tokens * (1 / sampled + 1 / trained)),
    }
