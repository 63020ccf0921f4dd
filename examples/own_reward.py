"""A reward of one's own: a right last number earns 1, and half of it where the response is long.

torchrun engine/train.py grpo-7b --data.verifier examples/own_reward.py:score --data.reward pool 0.5
"""

import re


def score(response: str, answer: str, prompt: dict) -> float | None:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", response.replace(",", ""))
    if not answer:
        return None  # nothing is to be said: the rollout leaves its group
    right = bool(numbers) and float(numbers[-1]) == float(answer)
    return 0.0 if not right else 0.5 if len(response) > 2000 else 1.0
