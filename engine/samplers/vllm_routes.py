"""Which experts vLLM's routers choose while it samples, token by token: what the trainer's own choices are compared with.

vLLM's way to say it (`enable_return_routed_experts`, `CompletionOutput.routed_experts`) needs its second model runner, and that Triton:
on a CPU 0.32 refuses it ("Model Runner V2 requires Triton"). The routers' own hook is there in both; it is called in Python, so that it
sees every choice of the first runner, and none that a CUDA graph replays. Shapes: S positions of a sequence, Λ layers with experts, K
experts a token.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor


def routers_of(worker: Any) -> list[Any]:
    """Runs in vLLM's worker: its routers in model order; none where they cannot be heard."""
    layers = sys.modules.get("vllm.model_executor.layers.fused_moe.layer")  # which only a model with experts has loaded
    kind = getattr(layers, "MoERunner", None)
    runner = worker.model_runner
    if kind is None or not (hasattr(runner, "query_start_loc") and hasattr(runner, "input_batch")):
        return []
    found = [module for module in runner.get_model().modules() if isinstance(module, kind)]
    told = all(hasattr(each.router, "set_capture_fn") and not each._quant_method.is_monolithic for each in found)
    return [each.router for each in found] if told else []


def listen(worker: Any) -> None:
    """Runs in vLLM's worker."""
    worker.soundrl_routes = []
    for layer, router in enumerate(routers_of(worker)):
        router.set_capture_fn(partial(note, worker.model_runner, worker.soundrl_routes, layer))


def note(runner: Any, routes: list[tuple[str, int, int, np.ndarray]], layer: int, chosen_TK: Tensor) -> None:
    """The choices of one layer in one forward pass: its rows are the requests' tokens, one after the other."""
    batch, bounds = runner.input_batch, runner.query_start_loc.np
    chosen = chosen_TK.to(torch.int16).cpu().numpy()
    for row, request in enumerate(batch.req_ids):
        first = int(batch.num_computed_tokens_cpu[row])
        routes.append((request, layer, first, chosen[bounds[row] : bounds[row + 1]].copy()))


def heard(worker: Any) -> list[tuple[str, int, int, np.ndarray]]:
    """Runs in vLLM's worker: what was noted, and the end of it."""
    for router in routers_of(worker):
        router.set_capture_fn(None)
    routes, worker.soundrl_routes = worker.soundrl_routes, []
    return routes


class Routes:
    """Of one engine. `Routes.of` is None where its routers cannot be heard."""

    def __init__(self, llm: Any, layers: int) -> None:
        self.llm, self.layers = llm, layers
        self.active = False
        self.asked: dict[str, str] = {}
        """Prompt id by the number under which vLLM knows a request"""
        self._found: dict[str, list[tuple[int, int, np.ndarray]]] = {}

    @classmethod
    def of(cls, llm: Any, graphs: bool) -> Routes | None:
        """`graphs`: whether the engine replays CUDA graphs."""
        layers = 0 if graphs else len(llm.collective_rpc(routers_of)[0])
        return cls(llm, layers) if layers else None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What is sampled within can be asked for afterwards."""
        self.asked, self._found, self.active = {}, {}, True
        self.llm.collective_rpc(listen)
        try:
            yield
        finally:
            self.active = False
            for request, layer, first, chosen in self.llm.collective_rpc(heard)[0]:
                number = request if request in self.asked else request.rpartition("-")[0]  # vLLM adds a random part
                if number in self.asked:
                    self._found.setdefault(self.asked[number], []).append((layer, first, chosen))

    def chosen(self, prompt_id: str, length: int) -> np.ndarray:
        """[S, Λ, K] int16 of the first `length` tokens of a prompt and its response; −1 where nothing was computed: what came out of the
        prefix cache, and the last token, which nothing follows."""
        found = self._found.get(prompt_id, [])
        out = np.full((length, self.layers, found[0][2].shape[1] if found else 1), -1, np.int16)
        for layer, first, chosen in found:
            out[first : first + len(chosen), layer] = chosen[: max(0, length - first)]
        return out
