"""What a batch of scored groups says: accuracy, flawed positives, the paper's ρ, verdicts without an answer (names: `fapo/…`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import is_flawed, is_unknown

COUNTS = (
    "rollouts",
    "correct",
    "flawed",
    "unknown",
    "judged",
    "reward",
    "flawed_advantage",
    "groups",
    "past_shift",
    "signal",
    "tokens",
    "cut",
    "kept",
    "verify_unknown",
    "unparseable",
    "no_answer",
    "true_flawed",
    "found_flawed",
    "false_alarms",
)

Oracle = Callable[[Prompt, Rollout], Verdict]


def count(groups: Sequence[Group], lam: float, truth: Oracle | None = None) -> dict[str, float]:
    """Sums that add up over ranks; `rates` turns them into metrics. α, β, γ: sound, wrong, flawed rollouts of a group.

    `truth`, where there is one (the embedded world's oracle), says of every correct rollout whether it is flawed: the judge is measured.
    """
    sums: dict[str, float] = dict.fromkeys(COUNTS, 0.0)
    for group in groups:
        correct = sum(outcome is Outcome.CORRECT for outcome in group.outcomes)
        flawed = [is_flawed(verdict) for verdict in group.verdicts]
        unknown = sum(is_unknown(verdict) for verdict in group.verdicts)
        outcomes = Counter(group.outcomes)
        wrong, sound = len(group.rollouts) - correct - outcomes[Outcome.UNKNOWN], correct - sum(flawed) - unknown
        sums["groups"] += 1
        # ρ = α/β > 2/λ − 1: the group pushes its flawed rollouts down (App. A); written without the division by β = 0.
        sums["past_shift"] += lam > 0 and correct > 0 and sound > (2 / lam - 1) * wrong
        sums["signal"] += any(advantage != 0.0 for advantage in group.advantages)
        sums["rollouts"] += len(group.rollouts)
        sums["correct"] += correct
        sums["flawed"] += sum(flawed)
        sums["unknown"] += unknown
        sums["judged"] += sum(verdict is not None for verdict in group.verdicts)
        # An evaluation has no rewards, and none of its rollouts leaves a group.
        sums["kept"] += sum(group.kept)
        sums["reward"] += sum(reward for reward, kept in zip(group.rewards, group.kept, strict=True) if kept)
        sums["flawed_advantage"] += sum(a for a, f in zip(group.advantages, flawed, strict=True) if f) if group.advantages else 0.0
        sums["tokens"] += sum(len(rollout.tokens) for rollout in group.rollouts)
        sums["cut"] += sum(rollout.finish_reason == "length" for rollout in group.rollouts)
        sums["verify_unknown"] += outcomes[Outcome.UNKNOWN]
        sums["unparseable"] += outcomes[Outcome.UNPARSEABLE]
        sums["no_answer"] += outcomes[Outcome.NO_ANSWER]
        if truth is not None:
            for rollout, outcome, said in zip(group.rollouts, group.outcomes, flawed, strict=True):
                if outcome is Outcome.CORRECT:
                    is_so = is_flawed(truth(group.prompt, rollout))
                    sums["true_flawed"] += is_so
                    sums["found_flawed"] += is_so and said
                    sums["false_alarms"] += said and not is_so
    return sums


def rates(sums: dict[str, float], truth: bool = False) -> dict[str, float]:
    """Metrics of a step from the sums over all ranks; a share of nothing is 0. With `truth` the judge's precision and recall against it.
    The flawed share and ρ are of rollouts with a verdict, sound or flawed, and are left out where none has one."""

    def share(part: str, whole: str) -> float:
        return sums[part] / sums[whole] if sums[whole] else 0.0

    told, wrong = sums["judged"] - sums["unknown"], sums["rollouts"] - sums["verify_unknown"] - sums["correct"]
    sound = told - sums["flawed"]
    of_verdicts = (
        {"fapo/flawed_ratio": sums["flawed"] / told, "fapo/rho": sound / wrong if wrong else float(sound > 0) * 1e9} if told else {}
    )
    against_truth = {
        "fapo/true_flawed_ratio": share("true_flawed", "correct"),
        "genrm/precision": share("found_flawed", "flawed"),
        "genrm/recall": share("found_flawed", "true_flawed"),
        "genrm/over_critic": sums["false_alarms"] / max(sums["correct"] - sums["true_flawed"], 1.0),
    }
    return (
        (against_truth if truth else {})
        | of_verdicts
        | {
            "reward/mean": share("reward", "kept"),
            "reward/correct": sums["correct"] / verified(sums),
            "reward/no_answer": share("no_answer", "rollouts"),
            "reward/unparseable": share("unparseable", "rollouts"),
            "reward/groups_with_signal": share("signal", "groups"),
            "verify/unknown": share("verify_unknown", "rollouts"),
            "fapo/past_shift": share("past_shift", "groups"),
            "fapo/flawed_advantage": share("flawed_advantage", "flawed"),
            "genrm/unknown": share("unknown", "judged"),
            "tokens/response": share("tokens", "rollouts"),
            "tokens/cut": share("cut", "rollouts"),
        }
    )


def verified(sums: dict[str, float]) -> float:
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
