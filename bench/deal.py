"""How much of training is useful when ranks move in lockstep: sequences dealt over ranks against groups trained where they were sampled.

    python bench/deal.py                  # 8 to 64 ranks at two length distributions; a minute, no model

Simulated with the trainer's own windows and dealing; nothing is timed. FSDP2's ranks run their micro-batches side by side, and each waits
for the longest: *useful* is the tokens with a gradient over ranks × the sum of those longest ones. Responses are log-normal, those to one
problem alike, cut at the limit; a problem's rollouts are right with a chance of its own (Beta), a right one is flawed in three of ten, so
that the groups with a signal follow from outcomes and verdicts as in a run. *Sampling* is how long it takes when requests are dealt longest
expected first, over how long when engines take turns at the prompts: an engine samples 256 at once, every round of decoding takes the same
time (vLLM's grow with the batch, so this is the most that can be won), and what is expected is what another visit of the prompt had.
Undealt is what was done before: a rank's groups stay with it,
are packed before their verdicts and shrink by them; it needs a multiple of the ranks, so 64 ranks get 64 prompts there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from record import ROOT, machine

from soundrl.engine.exchange import StepBatch
from soundrl.engine.longest_first import rounds_of_decoding
from soundrl.engine.packing import Sample, deal, micro_batches
from soundrl.engine.schedule import cut, minibatches, possible
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages

SAMPLES, PROMPT_TOKENS = 16, 150
PROMPTS, SLOTS = 512, 256  # of a step; requests that an engine samples at once
NOTHING = np.empty(0)
REWARDS = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=1, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)


@dataclass(frozen=True)
class Lengths:
    """Response lengths in tokens, and the budget of a micro-batch."""

    name: str
    median: float
    limit: int
    budget: int


LENGTHS = (Lengths("7B", 1150, 8192, 10240), Lengths("32B", 4600, 20480, 22528))


class Known:
    """A group whose verdicts are there: what `StepBatch` asks of a pending one."""

    ready = True

    def __init__(self, group: Group) -> None:
        self.group = group

    def made(self, whole: bool = False) -> Group:
        return self.group


def made(prompts: int, of: Lengths, ranks: int, rng: np.random.Generator) -> StepBatch:
    """A step's rollouts with lengths, outcomes and verdicts."""
    samples, groups, undecided, advantages, owned = list[Sample](), list[range](), list[bool](), list[float](), dict[int, Any]()
    for g in range(prompts):
        middle = of.median * rng.lognormal(0.0, 0.5)
        lengths = np.clip(middle * rng.lognormal(0.0, 0.45, SAMPLES), 16, of.limit).astype(int)
        right = rng.random(SAMPLES) < rng.beta(0.7, 0.7)
        flawed = rng.random(SAMPLES) < 0.3
        tokens = [np.zeros(n, dtype=np.int32) for n in lengths]
        group = Group(
            prompt=Prompt(id=str(g), text="", answer=""),
            rollouts=[
                Rollout(
                    prompt_id=str(g),
                    sample=i,
                    prompt_tokens=NOTHING,
                    tokens=NOTHING,
                    logprobs=NOTHING,
                    text="",
                    finish_reason="stop",
                    policy_version=0,
                )
                for i in range(SAMPLES)
            ],
            outcomes=[Outcome.CORRECT if r else Outcome.WRONG for r in right],
            verdicts=[(Verdict.flawed(0) if f else Verdict.sound()) if r else None for r, f in zip(right, flawed, strict=True)],
        )
        assign_advantages([group], REWARDS)
        undecided.append(bool(right.any()))
        groups.append(range(len(samples), len(samples) + SAMPLES))
        samples += [Sample(prompt_tokens=np.zeros(PROMPT_TOKENS, dtype=np.int32), tokens=t) for t in tokens]
        advantages += [0.0] * SAMPLES if undecided[-1] else group.advantages
        owned[g] = Known(group)
    # Every verdict is here: what other ranks would add to a sum is nothing.
    alone = SimpleNamespace(size=ranks, sum=lambda values: values)
    return StepBatch(samples, groups, undecided, np.array(advantages), owned, alone)  # type: ignore[arg-type]


def lockstep(rounds: list[list[int]]) -> tuple[int, int]:
    """(tokens with a gradient, tokens that all ranks wait for) of micro-batches side by side, a list of ranks each."""
    return sum(map(sum, rounds)), sum(len(each) * max(each) for each in rounds)


def dealt(batch: StepBatch, size: int, ranks: int, budget: int) -> list[list[int]]:
    rounds = []
    for minibatch in minibatches(batch, size, budget):
        for samples in minibatch.trained():
            lengths = [sample.length for sample in samples]
            rounds += [[sum(lengths[i] for i in own) for own in each] for each in micro_batches(lengths, ranks, budget)]
    return rounds


def first_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `budget` tokens: first fit, longest first; ties keep their order, so the result is a function
    of content.

    >>> first_fit([5, 3, 4, 2], 7)
    [[0, 3], [2, 1]]
    """
    bins: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        for i, (used, members) in enumerate(bins):
            if used + length <= budget:
                bins[i] = (used + length, [*members, index])
                break
        else:
            bins.append((length, [index]))
    return [members for _, members in bins]


def undealt(batch: StepBatch, size: int, ranks: int, budget: int) -> list[list[int]]:
    """Each rank packs its own block of the mini-batch's groups before their verdicts, window by window."""
    rounds = []
    final = np.concatenate([batch.owned[g].made().advantages for g in range(len(batch.groups))])
    for start in range(0, len(batch.groups), size):
        of_ranks = []
        for rank in range(ranks):
            own = range(start + rank * size // ranks, start + (rank + 1) * size // ranks)
            decided = [g for g in own if not batch.undecided[g] and batch.live([g])]
            judged = [g for g in own if batch.undecided[g]]
            lengths = [[batch.samples[i].length for i in possible(batch, g)] for g in judged]
            windows = [[judged[i] for i in part] for part in cut(lengths, 1, budget)]
            bins = []
            for window in [decided, *windows] if decided else windows:
                held = [i for g in window for i in possible(batch, g)]
                packed = first_fit([batch.samples[i].length for i in held], budget)
                bins += [sum(batch.samples[held[i]].length for i in members if final[held[i]] != 0.0) for members in packed]
            of_ranks.append(bins)
        rounds += [[bins[j] if j < len(bins) else 0 for bins in of_ranks] for j in range(max(map(len, of_ranks)))]
    return [each for each in rounds if any(each)]


def sampling(prompts: int, of: Lengths, engines: int, rng: np.random.Generator) -> float:
    """Rounds of decoding of a step with its requests dealt, over those without."""
    expected, lengths = [], []
    for _ in range(prompts):
        middle = of.median * rng.lognormal(0.0, 0.5)
        before, now = (np.clip(middle * rng.lognormal(0.0, 0.45, SAMPLES), 16, of.limit).astype(int) for _ in range(2))
        expected.append(float(before.mean()))
        lengths.append(now.tolist())
    ways = (deal(expected, engines), [range(engine, prompts, engines) for engine in range(engines)])
    dealt, turns = (rounds_of_decoding([[n for i in hand for n in lengths[i]] for hand in hands], SLOTS) for hands in ways)
    return dealt / turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minibatches", type=int, default=32, help="mini-batches of a setting")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "deal.jsonl")
    a = parser.parse_args()
    print(f"{a.minibatches} mini-batches of 32 prompts × {SAMPLES}: useful share, and rounds of micro-batches a mini-batch")
    print(f"{'lengths':8}{'ranks':>6}{'undealt':>10}{'rounds':>8}{'dealt':>10}{'rounds':>8}{'sampling':>10}")
    a.out.parent.mkdir(parents=True, exist_ok=True)
    for of in LENGTHS:
        for ranks in (8, 16, 32, 64):
            row: dict[str, Any] = {"lengths": asdict(of), "ranks": ranks, "samples": SAMPLES, "minibatches": a.minibatches}
            for name, way, size in (("undealt", undealt, max(32, ranks)), ("dealt", dealt, 32)):
                batch = made(a.minibatches * size, of, ranks, np.random.default_rng(0))
                rounds = way(batch, size, ranks, of.budget)
                useful, waited = lockstep(rounds)
                row[name] = {"prompts": size, "useful": round(useful / waited, 4), "rounds": round(len(rounds) / a.minibatches, 2)}
            times = [sampling(PROMPTS, of, ranks, np.random.default_rng(seed)) for seed in range(8)]
            row |= {"sampling": round(float(np.mean(times)), 4), "sampling_prompts": PROMPTS, "slots": SLOTS}
            print(
                f"{of.name:8}{ranks:6}{row['undealt']['useful']:10.3f}{row['undealt']['rounds']:8.2f}"
                f"{row['dealt']['useful']:10.3f}{row['dealt']['rounds']:8.2f}{row['sampling']:10.3f}",
                flush=True,
            )
            with open(a.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row | {"machine": machine("cpu")}) + "\n")


if __name__ == "__main__":
    main()
