"""The policy: a transformers model under FSDP2, fed with packed sequences. Shapes: T tokens, R response tokens, V vocabulary."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from soundrl.engine.attention import HOOK, attend_within, check_attention
from soundrl.engine.config import Model
from soundrl.engine.experts.routers import Routers
from soundrl.engine.files.adapter_folder import Base, Shape, base_of
from soundrl.engine.files.model_folder import companions, in_one_line, load_config, read_config, read_tensors
from soundrl.engine.files.names import Names, named_like_folder
from soundrl.engine.gather import gathered
from soundrl.engine.head import Compute, Head
from soundrl.engine.lora.lora import Adapters, is_adapter, merged
from soundrl.engine.packing import PackedBatch
from soundrl.engine.ranks import Ranks
from soundrl.engine.telemetry.flops import Cost, active_parameters
from soundrl.kernels.linear_logprob import Logprobs, linear_logprob
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.lm_head import LMHead
from soundrl.kernels.loss_rule import LossRule

KEEP_GATHERED = 500_000_000  # parameters


class Policy:
    """Model and tokenizer. `model` holds float32 master weights, sharded over all ranks; it computes in `settings.dtype`. A `frozen` one
    never trains, and holds what it computes with, as the base of adapters does (`settings.lora`, begun from `seed`); `asleep`: on the host,
    but for the layer that computes."""

    def __init__(
        self, folder: Path, tokenizer: Any, settings: Model, ranks: Ranks, *, frozen: bool = False, asleep: bool = False, seed: int = 0
    ) -> None:
        self.folder, self.tokenizer, self.settings, self.ranks = folder, tokenizer, settings, ranks
        config = load_config(folder)
        # In memory: a run may end after its folder has moved, and its exports need them then.
        self.raw, self.companions = (read_config(folder), companions(folder)) if ranks.main else ({}, {})
        noise = "dropout attention_dropout activation_dropout embd_pdrop resid_pdrop attn_pdrop layerdrop router_jitter_noise"
        for name in noise.split():
            if hasattr(config, name):
                setattr(config, name, 0.0)  # the gradient must be that of the distribution that was sampled
        if hasattr(config, "output_router_logits"):
            config.output_router_logits = False  # the library's own balance term counts a micro-batch; `loss.balance` does it
        if settings.rope_base_length:
            config.max_position_embeddings = settings.rope_base_length
        if settings.max_length > config.max_position_embeddings:
            raise ValueError(
                f"model.max_length {settings.max_length} exceeds the context of {folder}, {config.max_position_embeddings} tokens; "
                "lower model.max_length"
            )
        config.use_cache = False
        self.config = config
        adapted = settings.lora[0] > 0 and not frozen
        held = getattr(torch, settings.dtype) if frozen or adapted else torch.float32
        # Parameters on meta: no rank ever holds the whole model, each reads its shards from the files below.
        with in_one_line(f"{folder / 'config.json'} describes no model", "download it again"), init_empty_weights(include_buffers=False):
            # A copy: the head takes over what the model's config says of logits, and an export must still say it.
            self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=held, attn_implementation=HOOK
            ).requires_grad_(not (frozen or adapted))
        self.architecture = type(self.model).__name__
        check_attention(settings.attention, self.model, getattr(torch, settings.dtype), ranks.device)
        # Parameters made on meta are each their own: tie them before FSDP2 counts them, or it would shard and gather the head apart.
        self.model.tie_weights()
        self.names, self.routers = Names.of(self.model), Routers.of(self.model)
        self.adapters = Adapters(self.model, Shape(*settings.lora)) if adapted else None
        if "recompute" in settings.save_memory:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.head = Head(self.model)
        self._shard(asleep)
        self._load()
        self.base: Base | None = None
        """What the adapters belong to, where there are any"""
        if self.adapters is not None:
            self.adapters.begin(seed, ranks)
            self.base = base_of(folder, ranks)

    def _shard(self, asleep: bool) -> None:
        dtype = getattr(torch, self.settings.dtype)
        inner = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        # The root alone returns float32: a layer that did would hand the next module another type than its weights have.
        outer = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=torch.float32)
        offload = CPUOffloadPolicy() if asleep else OffloadPolicy()
        layers = next(module for module in self.model.modules() if isinstance(module, nn.ModuleList))
        # A small model stays gathered between forward and backward (ZeRO-2): its second gather costs more than its memory.
        large = sum(parameter.numel() for parameter in self.model.parameters()) > KEEP_GATHERED
        for layer in layers:
            fully_shard(layer, mesh=self.ranks.mesh, mp_policy=inner, reshard_after_forward=large, offload_policy=offload)
        fully_shard(self.model, mesh=self.ranks.mesh, mp_policy=outer, offload_policy=offload)
        assert isinstance(self.model, FSDPModule)
        buffers = {name: buffer.to(self.ranks.device) for name, buffer in self.model.named_buffers()}
        self.model.to_empty(device="cpu" if asleep else self.ranks.device)
        for name, buffer in buffers.items():  # to_empty() forgets what buffers hold, and RoPE frequencies are in no checkpoint
            owner, _, leaf = name.rpartition(".")
            self.model.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)

    @torch.no_grad()
    def _load(self) -> None:
        """Read this rank's rows from the folder's safetensors; every parameter must be found, and nothing may be left over. A collective:
        what is wrong with one rank's rows is every rank's ValueError."""
        parameters, names, ranks = dict(self.base_parameters()), self.names, self.ranks
        tied = {name for name, _ in self.model.named_parameters(remove_duplicate=False) if not is_adapter(name)} - set(parameters)
        seen = set[str]()

        def own(name: str) -> tuple[Tensor, int]:
            parameter = parameters[names.pieces[name].parameter]
            return cast(DTensor, parameter).to_local(), ranks.first_row(parameter.shape[0])

        def rows(name: str, shape: Sequence[int]) -> slice:
            if name in tied:
                return slice(0)
            if tuple(shape) != (expected := names.pieces[name].shape):
                raise ValueError(f"{self.folder}: {name} has shape {tuple(shape)}, config.json says {expected}")
            local, first = own(name)
            return names.pieces[name].rows(first, len(local))

        fault = ""
        try:
            for name, part in read_tensors(self.folder, lambda name: name in tied or names.wanted(name), rows):
                if name not in tied:
                    local, first = own(name)
                    names.pieces[name].fill(local, first, part)
                    seen.add(name)
            if missing := names.missing(seen):
                fault = (
                    f"{self.folder}: {len(missing)} tensors missing (first: {min(missing)}); the weights do not belong to config.json: "
                    "download both again"
                )
        except ValueError as error:
            fault = str(error)
        if fault := ranks.first_said(fault):
            raise ValueError(fault)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name: those that have gradients and moments, and stand in a checkpoint."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the model itself, in model order, tied ones once."""
        return ((name, parameter) for name, parameter in self.model.named_parameters() if not is_adapter(name))

    def named_full_tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, unsharded, in `dtype` (None: `settings.dtype`), by its folder's (Hugging Face) names and in model order (tied
        ones once); where a parameter stacks a layer's experts, a view of it for each; adapters are merged into them.

        A collective: all ranks must exhaust it together. Two layers are alive at most (`gather.most_alive`), unless the caller keeps more.
        """
        kind: torch.dtype = dtype or getattr(torch, self.settings.dtype)
        # What adapters are added to is cast once, after that.
        whole = gathered(self.model, None if self.adapters else kind)
        return named_like_folder(self.names, merged(whole, self.adapters, kind))

    def run(self, batch: PackedBatch, compute: Compute) -> Tensor:
        """One forward pass; `compute` gets the hidden states of the R rows that predict a response token, in the order of
        `batch.response_index`, with the gathered head, and its result comes back. [R, V] logits are never made."""
        self.head.compute = compute
        try:
            out = self.model(
                input_ids=batch.input_ids[None],
                position_ids=batch.position_ids[None],
                logits_to_keep=batch.response_index - 1,
                attend=attend_within(self.settings.attention, batch.cu_seqlens, batch.tokens),
                use_cache=False,
            ).logits
        finally:
            self.head.compute = None
        if not torch.is_grad_enabled():
            # FSDP2 leaves parameters gathered for a backward pass that will not come.
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        return out

    def reduce_between_replicas(self, now: bool) -> None:
        """Whether the next backward pass sums gradients over replicas, with what earlier ones have kept; within each they always are."""
        if self.ranks.replicas > 1:
            cast(FSDPModule, self.model).set_requires_all_reduce(now)

    def response_logprobs(self, batch: PackedBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy [R] of the batch's response tokens."""
        targets_R = batch.input_ids[batch.response_index]

        def compute(hidden_RH: Tensor, head: LMHead) -> Tensor:
            return torch.stack(linear_logprob(hidden_RH, head, targets_R, temperature, fp32_logits=True)[:2])

        logprob_R, entropy_R = self.run(batch, compute)
        return logprob_R, entropy_R

    def response_loss(
        self, batch: PackedBatch, temperature: float, rule: LossRule, count: float, *, supervised: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Logprobs]:
        """Policy loss of the batch's response tokens over `count`, metric sums, log-probabilities [R]; the loss alone is differentiable.
        `supervised`: every token has advantage 1 and no sampler."""
        index_R = batch.response_index
        rest: list[Any] = []

        def compute(hidden_RH: Tensor, head: LMHead) -> Tensor:
            loss, *others = linear_policy_loss(
                hidden_RH,
                head,
                batch.input_ids[index_R],
                None if batch.old_logprobs is None else batch.old_logprobs[index_R],
                torch.ones_like(batch.advantages[index_R]) if supervised else batch.advantages[index_R],
                None if supervised else batch.sampler_logprobs[index_R],
                count,
                rule=rule,
                cu_seqlens=batch.response_cu_seqlens,
                reference_logprob=None if batch.reference_logprobs is None else batch.reference_logprobs[index_R],
                temperature=temperature,
                fp32_logits=True,
            )
            rest.extend(others)
            return loss

        loss = self.run(batch, compute)
        return loss, *rest

    def files(self) -> dict[str, bytes]:
        """What a Hugging Face folder of the policy has beside weights, by name, on rank 0: config, generation config, tokenizer and chat
        template as the folder that it started from has them."""
        if not self.ranks.main:
            return {}
        config = {name: value for name, value in self.raw.items() if name != "torch_dtype"} | {"dtype": "float32"}
        config.setdefault("architectures", [self.architecture])
        if self.settings.rope_base_length:
            config["max_position_embeddings"] = self.settings.rope_base_length
        return self.companions | {"config.json": (json.dumps(config, indent=2) + "\n").encode()}

    def cost(self) -> Cost:
        """FLOP of this model by formula."""
        of, adapted = self.model.config, sum(p.numel() for name, p in self.model.named_parameters() if "lora_" in name)
        width = getattr(of, "head_dim", None) or of.hidden_size // of.num_attention_heads
        active = active_parameters(self.model, of) - adapted
        return Cost(active, of.num_hidden_layers * of.num_attention_heads * width, adapted)

    def describe(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        experts = "" if self.routers is None else f", {self.routers.describe(self.ranks.shards)}"
        adapters = f", {self.adapters.describe()}" if self.adapters else ""
        return f"{self.architecture}, {count / 1e6:.1f} M parameters{experts}{adapters}, {self.settings.dtype}"
