"""The critic's reward: is the verdict right, and how far is the named step from the first wrong one."""

from __future__ import annotations

from soundrl.fapo.records import Verdict


def critic_reward(label: int, verdict: Verdict, steps: int, process: bool = True) -> float:
    """R_outcome + R_process for one critique (arXiv 2510.22543 Eq. 7, and its released code for critiques without a verdict).

    R_outcome is +1 where sound or flawed is right, else −1; R_process is −|t̂ − t*| ÷ n where label and verdict both say flawed, else 0
    (and 0 always without `process`, the ablation). `label` is t*, −1 = sound; `steps` is n. An unknown verdict is −1.

    >>> [round(critic_reward(3, Verdict.flawed(t), 5), 1) for t in (3, 2, 0)], critic_reward(3, Verdict.sound(), 5)
    ([1.0, 0.8, 0.4], -1.0)
    >>> critic_reward(-1, Verdict.sound(), 5), critic_reward(-1, Verdict.flawed(0), 5), critic_reward(-1, Verdict.unknown("no_box"), 5)
    (1.0, -1.0, -1.0)
    """
    if not -1 <= label < steps:
        raise ValueError(f"label {label} is no step of {steps}; it is −1 or 0 … {steps - 1}")
    if verdict.kind == "unknown" or (verdict.kind == "flawed") != (label >= 0):
        return -1.0
    if label < 0 or not process or verdict.step is None:
        return 1.0
    return 1.0 - abs(verdict.step - label) / steps
