"""When a run is not well, and when it could be faster: a threshold, its reason and what to do, a check each; alarms stand first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from soundrl.view.looked import HALF, Looked, Value, fallen, first_line, gate_used, reasons, silent, slowest, unknown_limit, worse


@dataclass(frozen=True)
class Check:
    level: str
    """`alarm`, `advice` or `note`"""
    value: Value
    limit: float | Callable[[Looked], float]
    """It is told from here on"""
    what: str
    """With the value as {value} and more of it as {more}"""
    why: str
    do: str
    link: str = ""
    """A page of the run: step, judge, or none"""
    more: Callable[[Looked], str] = lambda looked: ""


CHECKS = (
    Check(
        "alarm",
        lambda run: 1.0 if run.state in ("stopped", "stalled") and first_line(run.run.path, "error-rank*.txt") else None,
        1.0,
        "a rank has failed: {more}",
        "the run has ended by it",
        "read that file; mend it, and give the same command again",
        more=lambda run: first_line(run.run.path, "error-rank*.txt"),
    ),
    Check(
        "alarm",
        lambda run: run.quiet / run.run.metrics.seconds if run.state == "stalled" and run.run.metrics.seconds else None,
        6.0,
        "nothing new for {value:.0f} times a usual step{more}",
        "a phase that is open six times its median is a hang more often than work",
        "look at hang-*.txt in the run's folder, and at the judge's log",
        more=lambda run: "; " + first_line(run.run.path, "hang-*.txt") if any(run.run.path.glob("hang-*.txt")) else "",
    ),
    Check(
        "alarm",
        lambda run: float(len(run.run.alarms.standing())) or run.train.now("genrm/alarm"),
        1.0,
        "the judge's watch is under an alarm: {more}",
        "a judge that drifts is what the policy learns to please",
        "look at the judge's page and label some of the disagreements",
        "judge",
        more=lambda run: "; ".join(run.run.alarms.standing().values()) or "the run's console says which",
    ),
    Check(
        "alarm",
        gate_used,
        HALF,
        "sampler and trainer drift apart: {value:.0%} of what run.gate allows",
        "the sampler computes other probabilities than the trainer, so that its rollouts are no longer the policy's own",
        "look for a change of type, kernels or vLLM's version; model.dtype float32 tells whether it is rounding",
    ),
    Check(
        "alarm",
        silent,
        HALF,
        "{value:.0%} of the groups train nothing",
        "all rollouts of such a group have one reward: half of the sampling is for nothing",
        "choose problems of another difficulty (data.difficulty), more samples a prompt, or rollout.refill",
        "step",
    ),
    Check(
        "alarm",
        lambda run: run.mean("tokens/cut"),
        0.25,
        "{value:.0%} of the responses are cut at their limit",
        "an answer that is cut is wrong, whatever was in it: the reward teaches brevity",
        "raise rollout.max_new_tokens, or set fapo.overlong",
        "step?filter=cut",
    ),
    Check(
        "alarm",
        lambda run: run.mean("genrm/unknown"),
        unknown_limit,
        "{value:.0%} of the judged rollouts have no verdict: {more}",
        "from genrm.unknown on the run ends; half of it is close",
        "timeouts: more judges or genrm.deadline; cut_off: genrm.max_tokens; no_box: another prompt or judge",
        "step?filter=unknown",
        reasons("genrm/unknown_"),
    ),
    Check(
        "alarm",
        lambda run: run.mean("verify/unknown"),
        unknown_limit,
        "the verifier failed for {value:.0%} of the rollouts: {more}",
        "these leave their groups and train nothing",
        "read the verifier's first faults in the log",
        "step?filter=unknown",
        reasons("verify/"),
    ),
    Check(
        "alarm",
        lambda run: (slowest(run) or (None,))[0],
        6.0,
        "{more} took {value:.0f} times its median in the last step",
        "six times the usual is no noise of a machine",
        "look at the step's anatomy",
        "anatomy",
        lambda run: (slowest(run) or (0, ""))[1],
    ),
    Check(
        "alarm",
        lambda run: run.mean("optim/skipped"),
        1e-9,
        "optimizer steps were left out",
        "the gradient was not finite; three in a row end the run",
        "lower optim.lr, or look at the longest rollouts of the step",
        "step",
    ),
    Check(
        "alarm",
        worse,
        1.0,
        "the last evaluation is below the first, beyond both intervals",
        "training has made the policy worse",
        "lower optim.lr, or begin again from an earlier checkpoint",
    ),
    Check(
        "advice",
        lambda run: run.share("judge_wait"),
        0.2,
        "{value:.0%} of a step is waiting for verdicts",
        "the trainer stands still for a fifth of the time",
        "more judges (genrm.workers, genrm.urls), a higher genrm.concurrency, or smaller optim.minibatch_prompts",
        "anatomy",
    ),
    Check(
        "advice",
        lambda run: run.share("rank_wait"),
        0.2,
        "{value:.0%} of a step ranks wait for others",
        "one long rollout holds all ranks",
        "a shorter rollout.max_new_tokens, or more prompts a rank",
        "anatomy",
    ),
    Check(
        "advice",
        lambda run: run.share("sync"),
        0.25,
        "{value:.0%} of a step brings weights to the sampler",
        "it costs the same however much is sampled between",
        "more rollout.prompts a step",
    ),
    Check(
        "advice",
        fallen("loss/entropy"),
        0.75,
        "the policy's entropy has fallen by {value:.0%}",
        "groups whose samples are alike have one reward and train nothing",
        "raise the upper loss.clip, or rollout.temperature",
    ),
    Check(
        "advice",
        lambda run: (run.mean("loss/clip_high") or 0.0) + (run.mean("loss/clip_low") or 0.0),
        0.2,
        "{value:.0%} of the tokens are clipped",
        "clipped tokens train nothing",
        "fewer optimizer steps a batch (optim.minibatch_prompts), or a lower optim.lr",
    ),
    Check(
        "note",
        lambda run: run.train.now("genrm/latency_alarm"),
        1.0,
        "some critiques take very long",
        "an alarm by the clock: it only tells",
        "look at the judge's load",
        "judge",
    ),
    Check(
        "note",
        lambda run: (
            1.0
            if run.run.setting("genrm.judge", "none") in ("serve", "endpoint") and not (run.run.setting("genrm.probe") or [""])[0]
            else None
        ),
        1.0,
        "no probe watches the judge",
        "its errors on labelled solutions are not known, nor is the corrected flawed share",
        "set genrm.probe",
        "judge",
    ),
    Check(
        "note",
        lambda run: 1.0 if (run.run.path / "left_out.jsonl").is_file() else None,
        1.0,
        "rows of the data were left out",
        "they could not be used",
        "read left_out.jsonl in the run's folder",
    ),
)
