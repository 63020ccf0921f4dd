"""What samples add to the loss's denominator (the gradient itself: test_distributed.py; losses of whole steps: test_golden.py)."""

import pytest

from soundrl.engine.config import Loss
from soundrl.engine.packing import Sample
from soundrl.engine.trainer import Trainer


def trainer(variant: str, longest: int = 0) -> Trainer:
    """A trainer without a policy: only what `count` reads."""
    made = object.__new__(Trainer)
    made.rule, made.longest = Loss(variant=variant).rule(), longest  # type: ignore[arg-type]
    return made


SAMPLES = [Sample(prompt_tokens=(1, 2), tokens=(3,) * n, logprobs=(-1.0,) * n) for n in (3, 5, 0)]


@pytest.mark.parametrize(
    ("variant", "count"), [("dapo", 8.0), ("cispo", 8.0), ("sapo", 2.0), ("grpo", 2.0), ("gspo", 2.0), ("dr_grpo", 32.0)]
)
def test_the_denominator_of_each_variant(variant, count):
    """Responses of 3, 5 and 0 tokens: tokens, sequences with a token, or (Dr. GRPO, arXiv 2503.20783) such sequences times the longest
    response that the run allows, here 16, whatever was sampled; a share of them adds its share."""
    whole = trainer(variant, longest=16)
    assert whole.count(SAMPLES) == count
    assert whole.count(SAMPLES[:1]) + whole.count(SAMPLES[1:]) == count


def test_dr_grpo_without_the_longest_response_is_refused():
    with pytest.raises(ValueError, match=r"dr_grpo divides by the longest response; give Trainer `longest` \(rollout.max_new_tokens\)"):
        trainer("dr_grpo").count(SAMPLES)
