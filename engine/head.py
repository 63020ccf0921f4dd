"""The policy's LM head, which computes what is asked of its hidden states instead of [T, V] logits.

The replacement happens inside the head's own `forward`: FSDP2 has gathered the weight there, and what the model returns carries the
gradient, so that FSDP2's hooks fire as for logits. Shapes: R rows that predict a response token, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from soundrl.engine.lora.lora import head_lora
from soundrl.kernels.adapters.head import DIVISOR, FACTORS, of_logits
from soundrl.kernels.lm_head import LMHead

# (hidden [R, H], head) → any tensor made from them
Compute = Callable[[Tensor, LMHead], Tensor]
# Models whose factor (of whatever name `of_logits` reads) can be set to 1 for the model itself: it would be done to our result.
SCALED = ("cohere", "cohere2", "granite", "granitemoe", "granitemoeshared", "granitemoehybrid")


class Head:
    """Takes over `model`'s output layer. `compute` is set for the length of one forward pass (`Policy.run`).

    What the model does to its logits (a bound, a factor) becomes part of the `LMHead`, and the model leaves it: it would be done to our
    result. Raises ValueError for models that change their logits in another way.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        self.softcap, self.scale = of_logits(model)
        bound = "final_logit_softcapping"
        if (self.scale != 1.0 and config.model_type not in SCALED) or (self.softcap is not None and getattr(config, bound, None) is None):
            raise ValueError(
                f"{type(model).__name__} scales or bounds its logits (by {self.scale:g}, {self.softcap}) in a way that the fused head "
                f"cannot take over; use a model without it, one of {', '.join(SCALED)}, or one with {bound}"
            )
        if self.softcap is not None:
            setattr(config, bound, None)
        for name in (*FACTORS, DIVISOR) if self.scale != 1.0 else ():
            for owner in (config, model):  # some models read it once, others each time
                if hasattr(owner, name):
                    setattr(owner, name, 1.0)
        self.layer: Any = model.get_output_embeddings()
        self.layer.forward = self.forward
        self.compute: Compute | None = None

    def forward(self, hidden_1RH: Tensor) -> Tensor:
        assert self.compute is not None, "the head computes only within Policy.run"
        return self.compute(hidden_1RH[0], LMHead(self.layer.weight, self.layer.bias, self.softcap, self.scale, head_lora(self.layer)))
