"""What a batch of scored groups says: accuracy, flawed positives, the paper's ρ, verdicts without an answer (names: `fapo/…`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import is_flawed, is_unknown

Oracle = Callable[[Prompt, Rollout], Verdict]


def common(groups: Sequence[Group]) -> dict[str, float]:
    """Sums that every task counts; they add up over ranks. An evaluation has no rewards, and none of its rollouts leaves a group."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward, kept in zip(group.rewards, group.kept, strict=True) if kept]
    return {
        "groups": len(groups),
        "signal": sum(any(advantage != 0.0 for advantage in group.advantages) for group in groups),
        "rollouts": len(rollouts),
        "kept": len(rewards),
        "reward": sum(rewards),
        "tokens": sum(len(rollout.tokens) for rollout in rollouts),
        "cut": sum(rollout.finish_reason == "length" for rollout in rollouts),
    }


def count(groups: Sequence[Group], lam: float, truth: Oracle | None = None) -> dict[str, float]:
    """The reasoning task's sums; `rates` turns them into metrics.

    `truth`, where there is one (the embedded world's oracle), says of every correct rollout whether it is flawed: the judge is measured.
    """
    outcomes = Counter(outcome for group in groups for outcome in group.outcomes)
    verdicts = [verdict for group in groups for verdict in group.verdicts if verdict is not None]
    of_flawed = [a for group in groups for a, verdict in zip(group.advantages, group.verdicts, strict=False) if is_flawed(verdict)]
    told = []
    if truth is not None:
        told = [
            (is_flawed(truth(group.prompt, rollout)), is_flawed(verdict))
            for group in groups
            for rollout, outcome, verdict in zip(group.rollouts, group.outcomes, group.verdicts, strict=True)
            if outcome is Outcome.CORRECT
        ]
    return common(groups) | {
        "correct": outcomes[Outcome.CORRECT],
        "verify_unknown": outcomes[Outcome.UNKNOWN],
        "unparseable": outcomes[Outcome.UNPARSEABLE],
        "no_answer": outcomes[Outcome.NO_ANSWER],
        "judged": len(verdicts),
        "flawed": sum(map(is_flawed, verdicts)),
        "unknown": sum(map(is_unknown, verdicts)),
        "flawed_advantage": sum(of_flawed),
        "past_shift": sum(past_shift(group, lam) for group in groups),
        "true_flawed": sum(so for so, _ in told),
        "found_flawed": sum(so and said for so, said in told),
        "false_alarms": sum(said and not so for so, said in told),
    }


def past_shift(group: Group, lam: float) -> bool:
    """ρ = α/β > 2/λ − 1 (α, β: sound and wrong rollouts): the group pushes its flawed ones down (App. A). Without the division by β = 0."""
    correct = group.outcomes.count(Outcome.CORRECT)
    sound = correct - sum(is_flawed(verdict) or is_unknown(verdict) for verdict in group.verdicts)
    wrong = len(group.outcomes) - correct - group.outcomes.count(Outcome.UNKNOWN)
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


def rates(sums: Mapping[str, float], truth: bool = False) -> dict[str, float]:
    """Metrics of a step from the sums over all ranks. With `truth` the judge's precision and recall against it. The flawed share and ρ are
    of rollouts with a verdict, sound or flawed, and are left out where none has one."""
    told, wrong = sums["judged"] - sums["unknown"], sums["rollouts"] - sums["verify_unknown"] - sums["correct"]
    sound = told - sums["flawed"]
    out = common_rates(sums) | {
        "reward/correct": sums["correct"] / verified(sums),
        "reward/no_answer": share(sums, "no_answer", "rollouts"),
        "reward/unparseable": share(sums, "unparseable", "rollouts"),
        "verify/unknown": share(sums, "verify_unknown", "rollouts"),
        "fapo/past_shift": share(sums, "past_shift", "groups"),
        "fapo/flawed_advantage": share(sums, "flawed_advantage", "flawed"),
        "genrm/unknown": share(sums, "unknown", "judged"),
    }
    if told:
        out |= {"fapo/flawed_ratio": sums["flawed"] / told, "fapo/rho": sound / wrong if wrong else float(sound > 0) * 1e9}
    if truth:
        out |= {
            "fapo/true_flawed_ratio": share(sums, "true_flawed", "correct"),
            "genrm/precision": share(sums, "found_flawed", "flawed"),
            "genrm/recall": share(sums, "found_flawed", "true_flawed"),
            "genrm/over_critic": sums["false_alarms"] / max(sums["correct"] - sums["true_flawed"], 1.0),
        }
    return out


def verified(sums: Mapping[str, float]) -> float:
    """Rollouts whose outcome is known: what shares of right answers are taken of; at least 1."""
    return max(sums["rollouts"] - sums["verify_unknown"], 1.0)


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
            "the verifier's processes were killed or stood still for {:.0%} of the rollouts",
            "look for the system's out-of-memory killer in its log (this is the machine's fault, not that of the answers of step {})",
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
                raise TooManyUnknownError(
                    f"step {step}: {what.format(metrics[name])}, more than genrm.max_unknown {self.limit:.0%} for "
                    f"{self.bad_steps[name]} steps in a row; {cure.format(step)}"
                )
