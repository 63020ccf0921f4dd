"""The two committed starting points of `make run`, made anew:

    make starts                                                 # both warm starts, a core each, `make genrm`, then this file
    python starts/make.py --policy runs/arith-start/policy/step-000000 --judge runs/genrm-start

Weights are stored in float16 (half the bytes) and computed with in float32; `card.json` beside them holds the figures of exactly these
bytes, by the world's oracle, how they were made, and the sha256 of every file. A folder that is worse than `ACCEPTED` is not written.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import tyro
from safetensors.torch import load_file, save_file

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.recipes import ARITH_SOLUTIONS, RECIPES
from soundrl.engine.samplers.sampler import Draw, Request
from soundrl.engine.samplers.torch_sampler import TorchSampler
from soundrl.fapo.records import Outcome, Prompt, Rollout, Verdict
from soundrl.genrm.critic_data.labelled import Labelled, labelled_prompt, load_labelled
from soundrl.genrm.prompts import told_by
from soundrl.genrm.scores import flags, measures
from soundrl.genrm.verdict import parse_verdict

STARTS = Path(__file__).resolve().parent
ROWS, SAMPLES = 400, 2
ACCEPTED = {
    "policy": {"right": (0.45, 0.60), "flawed": (0.30, 0.50)},  # right often enough to learn from, flawed often enough to show FAPO
    "judge": {"precision": (0.95, 1.0), "recall": (0.75, 1.0), "coverage": (0.98, 1.0)},
}
"""Least and greatest value of a figure."""


@dataclass(frozen=True)
class Arguments:
    policy: Path
    """Folder that the recipe `arith` has exported after its warm start."""
    judge: Path
    """Folder that `soundrl.genrm.make` has written, from the warm start of `genrm-arith`."""
    into: Path = STARTS


def sampled(folder: Path, config: Config, requests: list[Request]) -> list[Rollout]:
    """Rollouts of the torch sampler in float32, in the requests' order."""
    sampler = TorchSampler(folder, load_tokenizer(folder), config.model, cast(Any, SimpleNamespace(rank=0, device=torch.device("cpu"))))
    found = {(r.prompt_id, r.sample): r for r in sampler.generate(requests)}
    return [found[r.prompt_id, r.sample] for r in requests]


def policy_rollouts(folder: Path, rows: int = ROWS) -> list[tuple[Prompt, Rollout]]:
    """`SAMPLES` rollouts of each of the first problems of the evaluation set `arith-test`."""
    config, source = RECIPES["arith"](), chains.ArithSource(0, "test")
    encode = Encoder(load_tokenizer(folder), config.max_prompt_tokens)
    prompts = {prompt.id: prompt for prompt in map(source.prompt, range(rows))}
    asked = [(prompt.id, encode(prompt)) for prompt in prompts.values()]
    longest = config.rollout.max_new_tokens
    requests = Draw(run_seed=0, phase="card", step=0, temperature=1.0, max_new_tokens=longest).requests(asked, SAMPLES)
    return [(prompts[r.prompt_id], r) for r in sampled(folder, config, requests)]


def right_ones(pairs: list[tuple[Prompt, Rollout]]) -> list[tuple[Prompt, Rollout]]:
    return [(p, r) for p, r in pairs if chains.verify(p.answer, r.text, r.finish_reason == "stop") is Outcome.CORRECT]


def policy_figures(pairs: list[tuple[Prompt, Rollout]]) -> dict[str, float]:
    """`right`: of all rollouts; `flawed`: of the right ones, those the oracle finds a wrong step in."""
    right = right_ones(pairs)
    flawed = sum(chains.oracle(prompt, rollout).kind == "flawed" for prompt, rollout in right)
    return {"right": len(right) / len(pairs), "flawed": flawed / max(len(right), 1), "rollouts": len(pairs)}


def judge_figures(folder: Path, rows: list[Labelled]) -> dict[str, float]:
    """The measures of `soundrl.genrm.scores.measures` on these solutions, each judged once, all but greedily."""
    config = RECIPES["genrm-arith"]()
    encode = Encoder(load_tokenizer(folder), config.max_prompt_tokens)
    prompts = [labelled_prompt(row, "card") for row in rows]
    asked = [(prompt.id, encode(prompt)) for prompt in prompts]
    longest = config.rollout.max_new_tokens
    requests = Draw(run_seed=0, phase="card", step=0, temperature=0.01, max_new_tokens=longest).requests(asked, 1)
    replies = sampled(folder, config, requests)
    verdicts = [parse_verdict(r.text, r.finish_reason, p.steps or 1) for p, r in zip(prompts, replies, strict=True)]
    sums = torch.tensor([flags(row, verdict) for row, verdict in zip(rows, verdicts, strict=True)], dtype=torch.float64).sum(0)
    return {name: value.item() for name, value in measures(sums[None]).items()} | {"solutions": len(rows)}


def as_labelled(prompt: Prompt, rollout: Rollout) -> Labelled:
    """A right rollout with the oracle's first wrong step: what the judge meets in the run."""
    verdict: Verdict = chains.oracle(prompt, rollout)
    label = -1 if verdict.step is None else verdict.step
    id = f"{prompt.id}/{rollout.sample}"
    return Labelled(id=id, problem=prompt.text, steps=chains.steps(rollout.text), label=label, answer=prompt.answer)


def write(name: str, source: Path, into: Path, config: Config) -> dict[str, Any]:
    """Copy the folder with float16 weights; returns the part of its card that needs no measuring."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(source, into, ignore=shutil.ignore_patterns("card.json"))  # it is written anew, with figures
    weights = {key: tensor.half() for key, tensor in load_file(source / "model.safetensors").items()}
    save_file(weights, into / "model.safetensors", {"format": "pt"})
    for file in into.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in into.iterdir())
    if size > 1.5e6:
        raise SystemExit(f"{into} has {size} bytes, more than the 1.5 MB that a clone should carry")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=STARTS).stdout.strip()
    told = told_by(source)
    return ({"prompt": told} if told else {}) | {
        "made": f"{config.warm_start.steps} supervised steps of {config.warm_start.batch} rows from fresh weights",
        "command": "make starts",
        "recipe": name,
        "seed": config.run.seed,
        "commit": commit,
        "versions": {"python": sys.version.split()[0]} | {package: version(package) for package in ("torch", "transformers")},
    }


def accept(which: str, folder: Path, card: dict[str, Any]) -> None:
    """Write the card, or end with the figure that is out of bounds."""
    for name, (least, most) in ACCEPTED[which].items():
        if not least <= card["figures"][name] <= most:
            shutil.rmtree(folder)
            raise SystemExit(f"{which}: {name} is {card['figures'][name]:.3f}, but {least} to {most} is accepted; train it differently")
    card["sha256"] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"{folder.name}: {card['says']}")


def error(share: float, count: float) -> float:
    """Standard error of a share."""
    return math.sqrt(share * (1 - share) / count)


def main(arguments: Arguments) -> None:
    policy, judge = arguments.into / "policy", arguments.into / "judge"
    card = write("arith", arguments.policy, policy, RECIPES["arith"]())
    pairs = policy_rollouts(policy)
    figures = card["figures"] = policy_figures(pairs)
    card["says"] = (
        f"{card['made']}; {figures['right']:.0%} of its answers are right, {figures['flawed']:.0%} of these flawed; "
        "`make starts` makes it anew"
    )
    accept("policy", policy, card)
    made = json.loads((arguments.judge / "card.json").read_text())
    card = {name: made[name] for name in ("prompt", "step", "selection", "made from", "data")}
    card |= write("genrm-arith", arguments.judge, judge, RECIPES["genrm-arith"]())
    card["made"] += f", then {made['made']}"
    figures = card["figures"] = judge_figures(judge, [as_labelled(*pair) for pair in right_ones(pairs)])
    card["figures on planted flaws"] = judge_figures(judge, load_labelled(ARITH_SOLUTIONS))
    card["says"] = (
        f"{card['made']}; of the policy's flawed positives it finds {figures['recall']:.0%}, and {figures['precision']:.0%} of what it "
        "finds is flawed; `make starts` makes it anew"
    )
    accept("judge", judge, card)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
