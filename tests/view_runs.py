"""Small runs for the inspector's tests: written by the project's own writers, every kind of rollout in them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from soundrl.engine.files.rollout_file import RolloutWriter, file_name
from soundrl.engine.files.trained_file import Trained, trained_name, write_trained
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Turn, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages

PROBLEM = "35*2-2+7-4?1\n"
SOUND = "35*2=70\n70-2=68\n68+7=75\n75-4=71\n#1\n"
FLAWED = "35*2=70\n70-2=68\n68+7=85\n85-4=81\n#1\n"
"""Wrong in step 2, and right in the end"""
WRONG = "35*2=70\n70+2=72\n72+7=79\n79-4=75\n#5\n"
BEGIN = 1_700_000_000.0
SETTINGS = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=60, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)
C, W, N, U = Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.UNKNOWN
SAID: dict[str, tuple[str, Outcome, Verdict | None]] = {
    "s": (SOUND, C, Verdict("sound", critique="35*2=70?70 ok \\boxed{-1}", tokens=20, seconds=0.5, worker="http://127.0.0.1:1/v1")),
    "f": (
        FLAWED,
        C,
        Verdict("flawed", 2, critique="68+7=85?75 wrong \\boxed{2}", tokens=28, seconds=2.5, votes=("flawed 2", "sound", "flawed 2")),
    ),
    "x": (SOUND, C, Verdict("flawed", 1, critique="70-2=68?69 wrong \\boxed{1}", tokens=24, seconds=1.0)),  # an over-critic's
    "u": (SOUND, C, Verdict.unknown("timeout")),
    "r": (SOUND, C, None),
    "w": (WRONG, W, None),
    "n": ("35*2=70\n70-2", N, None),
    "v": (SOUND, U, None),  # the verifier has failed
}
"""By a letter: text, outcome, verdict"""
LETTERS = {"x": "f", "v": "u"}
"""Of those above that are shown by another letter"""


def group_of(name: str, kinds: str, lam: float = 1.0, drop: bool = True, text: str = "") -> Group:
    """A rollout a letter of `SAID`, scored by the project's own rule; `text` instead of all texts."""
    group = Group(prompt=Prompt(id=name, text=PROBLEM, answer="1", source="arith-train"), rollouts=[])
    for sample, kind in enumerate(kinds):
        said, outcome, verdict = SAID[kind]
        said = text or said
        tokens = np.arange(3, 3 + len(said) % 37 + 2)
        finish = "length" if kind == "n" else "stop"
        rollout = Rollout(
            prompt_id=name, sample=sample, prompt_tokens=np.zeros(5), tokens=tokens, logprobs=-np.arange(len(tokens)) / 8, text=said,
            finish_reason=finish, policy_version=1,
        )  # fmt: skip
        rollout.sampled, rollout.verified, rollout.window = BEGIN + 1 + sample, BEGIN + 1.5 + sample, sample % 2
        if verdict is not None:
            rollout.paragraphs = tuple(line for line in said.split("\n") if line)
            verdict = replace(verdict, asked=BEGIN + 2 + sample, answered=BEGIN + 3 + sample)
        group.rollouts.append(rollout)
        group.outcomes.append(outcome)
        group.verdicts.append(verdict)
        group.scores.append(None)
        group.extracted.append("1" if outcome is C else None)
    assign_advantages([group], replace(SETTINGS, lam=lam, drop_unknown=drop))
    return group


def with_turns(group: Group) -> Group:
    """Its first rollout asks a tool, whose tokens are not the policy's own."""
    first = group.rollouts[0]
    first.turns = (Turn(text="35*2?", own=True), Turn(text="70\n", own=False, tool="calculator"), Turn(text="#1\n", own=True))
    first.mask = np.array([1] * 3 + [0] * 2 + [1] * (len(first.tokens) - 5), np.uint8)
    return group


def write_step(run: Path, step: int, ranks: list[list[Group]], kind: str = "train", set: str = "") -> None:
    folder = run / "rollouts" / f"step-{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    counts = [sum(len(group.rollouts) for group in groups) for groups in ranks]
    for rank in reversed(range(len(ranks))):
        with RolloutWriter(folder / file_name(rank, kind, set), kind, set) as file:
            for group in ranks[rank]:
                file.add([group])
            if rank == 0:
                file.end(counts)
        if kind == "train":
            rows = [r for group in ranks[rank] for r, a in zip(group.rollouts, group.advantages, strict=True) if a]
            named = [Trained(r.prompt_id, r.sample, r.logprobs - 0.25, np.full(len(r.tokens), 0.5, np.float16)) for r in rows]
            write_trained(folder / trained_name(rank), named)


def event(name: str, at: float, seconds: float, rank: int, cat: str = "phase") -> str:
    made = {"name": name, "ph": "X", "ts": round((BEGIN + at) * 1e6), "pid": rank, "tid": 0, "cat": cat, "dur": round(seconds * 1e6)}
    return json.dumps(made) + ",\n"


def call(name: str, at: float, seconds: float, rank: int) -> str:
    made = {"name": name, "pid": rank, "tid": 0, "cat": "judge", "id": f"{rank}/{name}"}
    return "".join(
        json.dumps(made | {"ph": mark, "ts": round((BEGIN + when) * 1e6)}) + ",\n" for mark, when in (("b", at), ("e", at + seconds))
    )


def write_trace(run: Path, steps: int) -> None:
    """10 s a step: 4 s of sampling (5 s on rank 1), 1 s of waiting for verdicts, 4 s of training; a call of a judge in each."""
    lines = []
    for step in range(1, steps + 1):
        at = 10.0 * (step - 1)
        for rank in range(2):
            lines += [
                event("generate", at, 4.0 + rank, rank),
                event("judge_wait", at + 5, 1.0, rank),
                event("micro-batch", at + 7, 2.0, rank, "detail"),
            ]
            lines += [event("train", at + 6, 4.0, rank), event("step", at, 10.0, rank), call(f"p{step}:0 {rank}", at + 4.5, 1.25, rank)]
    (run / "trace.json").write_text("[\n" + "".join(lines))


def metrics(step: int, **more: float) -> dict[str, float]:
    usual = {
        "reward/correct": 0.5, "reward/groups_with_signal": 0.9, "tokens/response": 30.0, "tokens/cut": 0.01, "genrm/unknown": 0.0,
        "fapo/flawed_ratio": 0.3, "fapo/flawed_corrected": 0.25, "fapo/flawed_corrected_low": 0.2, "fapo/flawed_corrected_high": 0.31,
        "mismatch/gate": 1.001, "time/step": 10.0, "time/generate": 4.0, "time/train": 4.0, "time/judge_wait": 1.0, "time/sync": 1.0,
        "loss/entropy": 0.5, "genrm/alarm": 0.0, "genrm/overlap": 0.75, "memory/peak_rss_mib": 1100.0, "memory/training_mib": 1050.0,
    }  # fmt: skip
    return {"step": step, **usual, **{name.replace("__", "/"): value for name, value in more.items()}}


def write_config(run: Path, **run_settings: object) -> None:
    config = asdict(RECIPES["arith-genrm"]())
    config["run"] |= {"name": run.name, "folder": str(run.parent), "steps": 4, **run_settings}
    config["rollout"] |= {"prompts": 3, "samples": 4}
    (run / "config.json").write_text(json.dumps({"format": 3, **config}))


def write_run(run: Path, steps: int = 3) -> Path:
    """Two ranks, groups of four, the same first prompt at each step, an evaluation of two sets before training and after the last step."""
    run.mkdir(parents=True)
    write_config(run)
    for step in range(1, steps + 1):
        groups = [group_of("p:0", "sfwn"), group_of(f"p{step}:0", "xuwr"), with_turns(group_of(f"p{step}:1", "wwww"))]
        write_step(run, step, [groups[:2], groups[2:]])
    for step in (0, steps):
        first, second = group_of("t:0", "s"), group_of("t:0", "w")
        second.rollouts[0].sample = 1
        for group in (first, second):
            group.rewards, group.advantages, group.kept = [], [], []
        write_step(run, step, [[first, second]], "eval", "arith-test")
    evaluation = {"eval/arith-test/accuracy": 0.5, "eval/arith-test/accuracy_low": 0.4, "eval/arith-test/accuracy_high": 0.6}
    sound = {"eval/arith-test/sound": 0.3, "eval/arith-test/sound_low": 0.2, "eval/arith-test/sound_high": 0.4}
    rows = [{"step": 0, **evaluation, **sound}, *(metrics(step) for step in range(1, steps + 1)), {"step": steps, **evaluation}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_trace(run, steps)
    told = {"kind": "flawed", "step": 1, "reason": "", "critique": "…"}
    row = {
        "step": 2,
        "set": "",
        "prompt_id": "p2:0",
        "sample": 0,
        "problem": PROBLEM,
        "paragraphs": SOUND.split(),
        "reference": "1",
    }
    row |= {"first": told, "second": told | {"kind": "sound", "step": None}}
    (run / "disagreements.jsonl").write_text(json.dumps(row) + "\n")
    return run
