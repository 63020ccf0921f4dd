"""What a batch of scored groups says: accuracy, flawed positives, the paper's ρ, verdicts without an answer (names: `fapo/…`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from soundrl.fapo.corrected import Errors, corrected
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.reward_rule import is_flawed, is_unknown
from soundrl.fapo.verify.own import REASONS

Oracle = Callable[[Prompt, Rollout], Verdict]
Split = Callable[[str], Sequence[str]]


def common(groups: Sequence[Group]) -> dict[str, float]:
    """Sums that every task counts; they add up over ranks. An evaluation has no rewards, and none of its rollouts leaves a group."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward, kept in zip(group.rewards, group.kept, strict=True) if kept]
    return {
        "groups": len(groups),
        "signal": sum(group.signal for group in groups),
        "rollouts": len(rollouts),
        "kept": len(rewards),
        "reward": sum(rewards),
        "tokens": sum(int(rollout.mask.sum()) for rollout in rollouts),
        "cut": sum(rollout.finish_reason == "length" for rollout in rollouts),
    }


def turn_sums(groups: Sequence[Group]) -> dict[str, float]:
    """Of rollouts of several turns; they add up over ranks."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    replies = [turn for rollout in rollouts for turn in rollout.turns if not turn.own]
    return {
        "replies": len(replies),
        "replies_failed": sum(turn.failed for turn in replies),
        "reply_tokens": sum(len(rollout.tokens) - int(rollout.mask.sum()) for rollout in rollouts),
        "out_of_turns": sum(rollout.finish_reason == "turns" for rollout in rollouts),
        "lost": sum(rollout.finish_reason == "lost" for rollout in rollouts),
    }


def turn_rates(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a step in which the environment answers: the policy's turns, and the tokens of replies, a rollout; the share of replies
    that are errors; shares of rollouts that came to the limit of turns, or whose reply was lost."""
    return {
        "turns/mean": 1 + share(sums, "replies", "rollouts"),
        "turns/tool_failed": share(sums, "replies_failed", "replies"),
        "turns/cut": share(sums, "out_of_turns", "rollouts"),
        "turns/lost": share(sums, "lost", "rollouts"),
        "tokens/tool": share(sums, "reply_tokens", "rollouts"),
    }


@dataclass(frozen=True)
class Truth:
    """What an environment knows exactly of a right response."""

    oracle: Oracle
    kinds: tuple[str, ...] = ()
    """Of flaws, as the oracle's verdicts name them (`reason`); `tool_…` are misuse of a tool."""


def count(groups: Sequence[Group], lam: float, truth: Truth | None = None, split: Split = lambda text: (text,)) -> dict[str, float]:
    """The reasoning task's sums; `rates` turns them into metrics.

    `truth`, where there is one (the embedded world's oracle), says of every correct rollout whether it is flawed: the judge is measured.
    `split` cuts a response into the steps that are counted.
    """
    outcomes = Counter(outcome for group in groups for outcome in group.outcomes)
    verdicts = [verdict for group in groups for verdict in group.verdicts if verdict is not None]
    of_flawed = [a for group in groups for a, verdict in zip(group.advantages, group.verdicts, strict=False) if is_flawed(verdict)]
    right = [
        (group.prompt, rollout, verdict)
        for group in groups
        for rollout, outcome, verdict in zip(group.rollouts, group.outcomes, group.verdicts, strict=True)
        if outcome is Outcome.CORRECT
    ]
    told = [(truth.oracle(prompt, rollout), is_flawed(verdict)) for prompt, rollout, verdict in right] if truth else []
    kinds = Counter(true.reason for true, _ in told)
    reasons = Counter(reason for group in groups for reason in group.reasons)
    return common(groups) | {
        **turn_sums(groups),
        "correct": outcomes[Outcome.CORRECT],
        "verify_unknown": outcomes[Outcome.UNKNOWN],
        "verify_unscored": outcomes[Outcome.UNSCORED],
        **{f"verify_{reason}": reasons[reason] for reason in REASONS},
        "unparseable": outcomes[Outcome.UNPARSEABLE],
        "no_answer": outcomes[Outcome.NO_ANSWER],
        "judged": len(verdicts),
        "flawed": sum(map(is_flawed, verdicts)),
        "unknown": sum(map(is_unknown, verdicts)),
        "flawed_advantage": sum(of_flawed),
        "past_shift": sum(past_shift(group, lam) for group in groups),
        "steps": sum(len(split(rollout.text)) for _, rollout, _ in right),
        "true_flawed": sum(is_flawed(true) for true, _ in told),
        "found_flawed": sum(is_flawed(true) and said for true, said in told),
        "false_alarms": sum(said and not is_flawed(true) for true, said in told),
        **{f"kind_{kind}": kinds[kind] for kind in (truth.kinds if truth else ())},
    }


def past_shift(group: Group, lam: float) -> bool:
    """ρ = α/β > 2/λ − 1 (α, β: sound and wrong rollouts): the group pushes its flawed ones down (App. A). Without the division by β = 0."""
    correct = group.outcomes.count(Outcome.CORRECT)
    sound = correct - sum(is_flawed(verdict) or is_unknown(verdict) for verdict in group.verdicts)
    wrong = len(group.outcomes) - correct - sum(outcome.leaves for outcome in group.outcomes)
    return lam > 0 and correct > 0 and sound > (2 / lam - 1) * wrong


def share(sums: Mapping[str, float], part: str, whole: str) -> float:
    """A share of nothing is 0."""
    return sums[part] / sums[whole] if sums[whole] else 0.0


def common_rates(sums: Mapping[str, float]) -> dict[str, float]:
    """What every task says of a step."""
    return {
        "reward/mean": share(sums, "reward", "kept"),
        "reward/groups_with_signal": share(sums, "signal", "groups"),
        "tokens/response": share(sums, "tokens", "rollouts"),
        "tokens/cut": share(sums, "cut", "rollouts"),
    }


def rates(sums: Mapping[str, float], truth: bool = False, errors: Errors | None = None) -> dict[str, float]:
    """Metrics of a step from the sums over all ranks. With `truth` the judge's precision and recall against it, and the share of each kind
    of flaw among right answers. The flawed share, corrected where the judge's `errors` are known, and ρ are of rollouts with a verdict,
    sound or flawed, and are left out where none has one; so is ρ where no answer is wrong. `verify/<reason>` counts rollouts; it is absent
    where there are none."""
    told = sums["judged"] - sums["unknown"]
    wrong = sums["rollouts"] - sums["verify_unknown"] - sums["verify_unscored"] - sums["correct"]
    out = common_rates(sums) | {
        "reward/correct": sums["correct"] / verified(sums),
        "reward/no_answer": share(sums, "no_answer", "rollouts"),
        "reward/unparseable": share(sums, "unparseable", "rollouts"),
        "verify/unknown": share(sums, "verify_unknown", "rollouts"),
        "verify/unscored": share(sums, "verify_unscored", "rollouts"),
        **{f"verify/{reason}": count for reason in REASONS if (count := sums[f"verify_{reason}"])},
        "fapo/past_shift": share(sums, "past_shift", "groups"),
        "fapo/flawed_advantage": share(sums, "flawed_advantage", "flawed"),
        "genrm/unknown": share(sums, "unknown", "judged"),
    }
    out |= {f"fapo/{name}": value for name, value in flawed_shares(sums, truth, errors).items()}
    if told and wrong:
        out["fapo/rho"] = (told - sums["flawed"]) / wrong
    if sums["correct"]:
        out["fapo/steps"] = sums["steps"] / sums["correct"]
        out |= {f"fapo/{name}": value / sums["correct"] for name, value in sums.items() if name.startswith("kind_")}
    if truth:
        out |= {
            "genrm/precision": share(sums, "found_flawed", "flawed"),
            "genrm/recall": share(sums, "found_flawed", "true_flawed"),
            "genrm/over_critic": sums["false_alarms"] / max(sums["correct"] - sums["true_flawed"], 1.0),
        }
    return out


def flawed_shares(sums: Mapping[str, float], truth: bool, errors: Errors | None) -> dict[str, float]:
    """`flawed_ratio` as the judge says it, of `told` rollouts with a verdict; `flawed_corrected` for its `errors`, where they are known,
    with `_low` and `_high` of the 95 % interval; the `true_flawed_ratio`; and `tool_misuse`, of right answers those whose first flaw is
    of a kind `tool_…`. Each is absent where there is nothing to take it of."""
    told, out = sums["judged"] - sums["unknown"], {}
    if told:
        out |= {"flawed_ratio": sums["flawed"] / told, "told": told}
    if errors is not None and (found := corrected(sums["flawed"], told, errors)) is not None:
        out |= {"flawed_corrected": found.value, "flawed_corrected_low": found.low, "flawed_corrected_high": found.high}
    if truth and sums["correct"]:
        out["true_flawed_ratio"] = sums["true_flawed"] / sums["correct"]
    if (misuse := [value for name, value in sums.items() if name.startswith("kind_tool_")]) and sums["correct"]:
        out["tool_misuse"] = sum(misuse) / sums["correct"]
    return out


def verified(sums: Mapping[str, float]) -> float:
    """Rollouts that were scored: what shares of right answers are taken of; at least 1."""
    return max(sums["rollouts"] - sums["verify_unknown"] - sums["verify_unscored"], 1.0)


class TooManyUnknownError(RuntimeError):
    """The judge or the verifier fails so often that training on the rest would be another experiment."""


class JudgeGoneError(TooManyUnknownError):
    """No judge is left to ask."""


class UnknownWatch:
    """Stops the run when more than `limit` of the judged rollouts have no verdict, or of all rollouts no outcome, three steps in a row; or
    at once when rollouts have no verdict and no judge is alive (`genrm/alive` 0)."""

    PATIENCE = 3
    SHARES = {
        "genrm/unknown": ("the judge gave no verdict for {:.0%} of its rollouts", "look at the reasons in rollouts/step-{:06d}"),
        "verify/unknown": (
            "the verifier failed for {:.0%} of the rollouts",
            "read its first faults in the log; where its processes were killed, look for the system's out-of-memory killer (step {})",
        ),
    }

    def __init__(self, limit: float, verdicts: bool = True) -> None:
        """`verdicts`: they change something (λ > 0); where they do not, a judge that fails ends no run."""
        self.limit, self.verdicts = limit, verdicts
        self.bad_steps: Counter[str] = Counter()

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        if self.verdicts and metrics.get("genrm/alive", 1.0) == 0.0 and metrics["genrm/unknown"] > 0.0:
            raise JudgeGoneError(
                f"step {step}: no judge answers, and {metrics['genrm/unknown']:.0%} of the judged rollouts have no verdict; start the "
                "judges of genrm.urls again and look at their logs"
            )
        for name, (what, cure) in self.SHARES.items():
            counts = self.verdicts or name != "genrm/unknown"
            self.bad_steps[name] = self.bad_steps[name] + 1 if counts and metrics.get(name, 0.0) > self.limit else 0
            if self.bad_steps[name] >= self.PATIENCE:
                why = ", ".join(f"{reason} {metrics[key]:.0f}" for reason in REASONS if (key := f"verify/{reason}") in metrics)
                why = f" ({why})" if why and name == "verify/unknown" else ""
                raise TooManyUnknownError(
                    f"step {step}: {what.format(metrics[name])}{why}, more than genrm.unknown {self.limit:.0%} for "
                    f"{self.bad_steps[name]} steps in a row; {cure.format(step)}"
                )
