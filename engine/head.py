"""The policy's LM head, which computes what is asked of its hidden states instead of [T, V] logits.

The replacement happens inside the head's own `forward`: FSDP2 has gathered the weight there, and what the model returns carries the
gradient, so that FSDP2's hooks fire as for logits. Shapes: R rows that predict a response token, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

# (hidden [R, H], weight [V, H], bias [V] or None, softcap or None) → any tensor made from them
Compute = Callable[[Tensor, Tensor, Tensor | None, float | None], Tensor]


class Head:
    """Takes over `model`'s output layer. `compute` is set for the length of one forward pass (`Policy.run`).

    Raises ValueError for models that change their logits in a way that the kernels do not know.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        for name in ("logit_scale", "logits_scaling"):
            scale = getattr(config, name, None)
            if scale not in (None, 1, 1.0):
                raise ValueError(
                    f"{type(model).__name__} multiplies its logits ({name} {scale} in config.json), which the fused head does not know; "
                    "use a model without it"
                )
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        if self.softcap is not None:
            config.final_logit_softcapping = None  # the model would bound our result once more
        self.layer: Any = model.get_output_embeddings()
        self.layer.forward = self.forward
        self.compute: Compute | None = None

    def forward(self, hidden_1RH: Tensor) -> Tensor:
        assert self.compute is not None, "the head computes only within Policy.run"
        return self.compute(hidden_1RH[0], self.layer.weight, self.layer.bias, self.softcap)
