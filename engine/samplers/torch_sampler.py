"""Plain torch sampling with a KV cache: the oracle that vLLM is tested against, and the sampler where vLLM is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from soundrl.engine.config import Model
from soundrl.engine.files.model_folder import end_tokens
from soundrl.engine.files.names import Names
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import More, Request, no_more
from soundrl.fapo.records import Rollout

MAX_SEQUENCES = 256


class TorchSampler:
    """See `Sampler`. Holds its own unsharded copy of the model; samples left-padded batches until the last row ends."""

    def __init__(self, folder: Path, tokenizer: Any, model: Model, ranks: Ranks) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, model.dtype), attn_implementation="sdpa")
        self.model.to(ranks.device).eval()
        self.names = Names.of(self.model)
        head = self.model.get_output_embeddings()  # computes in float32, as the trainer's does
        bias = getattr(head, "bias", None)
        head.forward = lambda hidden: linear(hidden.float(), head.weight.float(), None if bias is None else bias.float())
        self.tokenizer, self.device = tokenizer, ranks.device
        self.stop_tokens = set(end_tokens(folder, tokenizer))
        self.routes: None = None
        self.version, self.engine, self.leads, self.slots = 0, ranks.rank, True, MAX_SEQUENCES
        self.adapts = False  # every sync brings merged weights

    def generate(self, requests: Sequence[Request], leaving: Callable[[], bool] = lambda: False, more: More = no_more) -> Iterator[Rollout]:
        while requests and not leaving():
            for start in range(0, len(requests), MAX_SEQUENCES):
                yield from self._batch(requests[start : start + MAX_SEQUENCES], leaving)
            # All that comes makes the next batches, in an order of its own: a batch's last bits depend on what is in it.
            new = list[Request]()
            while not leaving() and (come := more(True)) is not None:
                new += come
            requests = sorted(new, key=lambda request: (request.prompt_id, request.sample))

    def of_engine(self, value: Any) -> Any:
        return value

    @torch.no_grad()
    def _batch(self, requests: Sequence[Request], leaving: Callable[[], bool]) -> Iterator[Rollout]:
        width = max(len(r.prompt_tokens) for r in requests)
        pads = [width - len(r.prompt_tokens) for r in requests]
        ids = torch.tensor([[0] * pad + r.prompt_tokens.tolist() for pad, r in zip(pads, requests, strict=True)], device=self.device)
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=self.device)
        # One random stream a request: its tokens do not depend on what else is in the batch.
        streams = [torch.Generator().manual_seed(r.seed) for r in requests]
        tokens: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        running, cache = set(range(len(requests))), None
        while running and not leaving():
            RANK.beat()
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            out = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache, logits_BV = out.past_key_values, out.logits[:, -1].float().cpu()
            chosen = [0] * len(requests)
            for i in sorted(running):
                request = requests[i]
                log_p = torch.log_softmax(logits_BV[i] / (request.temperature or 1.0), dim=-1)
                log_p = nucleus(log_p, request.top_p)
                greedy = request.temperature == 0.0
                chosen[i] = int(log_p.argmax() if greedy else torch.multinomial(log_p.exp(), 1, generator=streams[i]))
                tokens[i].append(chosen[i])
                logprobs[i].append(log_p[chosen[i]].item())
                ended = chosen[i] in self.stop_tokens and not request.ignore_end
                if ended or len(tokens[i]) == request.max_new_tokens:
                    running.discard(i)
                    yield Rollout(
                        prompt_id=request.prompt_id,
                        sample=request.sample,
                        prompt_tokens=request.prompt_tokens,
                        tokens=np.array(tokens[i], np.int32),
                        logprobs=np.array(logprobs[i], np.float32),
                        text=self.tokenizer.decode(tokens[i], skip_special_tokens=True),
                        finish_reason="stop" if ended else "length",
                        policy_version=self.version,
                    )
            ids = torch.tensor(chosen, device=self.device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(requests), 1)], dim=1)

    def sleep(self) -> None:
        """Keeps its memory: it is meant for small models."""

    def wake(self, part: str) -> None:
        """See `sleep`."""

    @torch.no_grad()
    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        own = dict(self.model.named_parameters())
        for name, tensor in tensors:
            piece = self.names.pieces[name]
            piece.of(own[piece.parameter]).copy_(tensor)
        self.version += 1

    def adapt(self, folder: Path) -> None:
        raise RuntimeError(f"the torch sampler takes merged weights alone, and no adapter ({folder})")

    def reset_cache(self) -> None:
        """Nothing is cached between calls."""

    def close(self) -> None:
        del self.model


def nucleus(log_p_V: Tensor, top_p: float) -> Tensor:
    """Renormalised log-probabilities of the smallest set of tokens whose mass reaches `top_p`; −inf elsewhere."""
    if top_p >= 1.0:
        return log_p_V
    sorted_V, order_V = log_p_V.sort(descending=True)
    before_V = sorted_V.exp().cumsum(-1) - sorted_V.exp()
    kept_V = torch.full_like(log_p_V, -torch.inf)
    keep = order_V[before_V < top_p]
    kept_V[keep] = log_p_V[keep]
    return torch.log_softmax(kept_V, dim=-1)
