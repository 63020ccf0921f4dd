"""The policy's LM head, which computes what is asked of its hidden states instead of [T, V] logits.

The replacement happens inside the head's own `forward`: FSDP2 has gathered the weight there, and what the model returns carries the
gradient, so that FSDP2's hooks fire as for logits. Shapes: R rows that predict a response token, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from soundrl.kernels.lm_head import LMHead

# (hidden [R, H], head) → any tensor made from them
Compute = Callable[[Tensor, LMHead], Tensor]


# What a model multiplies its logits by, or divides them by: by model type, as another type's attribute of the same name may mean another
# thing (HyperCLOVA X multiplies by what Granite divides by, MiniCPM3 divides hidden states).
MULTIPLIES = {"cohere": "logit_scale", "cohere2": "logit_scale"}
DIVIDES = dict.fromkeys(("granite", "granitemoe", "granitemoeshared", "granitemoehybrid"), "logits_scaling")
FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


class Head:
    """Takes over `model`'s output layer. `compute` is set for the length of one forward pass (`Policy.run`).

    What the model does to its logits (a bound, a factor) becomes part of the `LMHead`, and the model leaves it: it would be done to our
    result. Raises ValueError for models that change their logits in another way.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        if self.softcap is not None:
            config.final_logit_softcapping = None
        self.scale = 1.0
        for name in FACTORS:
            factor = getattr(config, name, None)
            if factor in (None, 1, 1.0):
                continue
            if name not in (MULTIPLIES.get(config.model_type), DIVIDES.get(config.model_type)):
                raise ValueError(
                    f"{type(model).__name__} scales its logits ({name} {factor} in config.json) in a way that the fused head does not "
                    f"know; use a model without it, or one of {', '.join((*MULTIPLIES, *DIVIDES))}"
                )
            self.scale = factor if config.model_type in MULTIPLIES else 1 / factor
            for owner in (config, model):  # some models read it once, others each time
                if hasattr(owner, name):
                    setattr(owner, name, 1.0)
        self.layer: Any = model.get_output_embeddings()
        self.layer.forward = self.forward
        self.compute: Compute | None = None

    def forward(self, hidden_1RH: Tensor) -> Tensor:
        assert self.compute is not None, "the head computes only within Policy.run"
        return self.compute(hidden_1RH[0], LMHead(self.layer.weight, self.layer.bias, self.softcap, self.scale))
