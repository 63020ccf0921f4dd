"""Why a weight sync failed its gate: each suspect is put right in turn, and the first repair that closes the gap names the fault."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from soundrl.engine.gather import module_of
from soundrl.engine.tools.expert_doctor import ExpertDoctor

if TYPE_CHECKING:
    from soundrl.engine.lora.lora import Adapters
    from soundrl.engine.weight_sync import GateResult, WeightSync


def diagnose(sync: WeightSync, failed: GateResult) -> str:
    """One line for the user. A collective, like the sync itself; changes the sampler's weights, so the run must stop after it.

    Order: raw log-probabilities (no repair needed to see it), tensors that were never sent, a stale prefix cache, then block by
    block of the model, whose re-sending closes the gap.
    """
    found = (
        f"weight sync failed its gate: mean exp|sampler − trainer log-prob| is {failed.exp_abs_dlogp:.4f} over {failed.tokens} tokens, "
        f"limit run.gate {sync.limit}. "
    )
    if failed.blind:
        found += f"The sampler reports no log-probability (NaN, infinite or above 0) for {failed.not_finite} of them. "
    if not failed.blind and not math.isfinite(failed.abs_dlogp):
        return found + "The trainer's own log-probabilities are not finite, and no sync mends them: look for NaN in its weights"
    if sync.temperature != 1.0 and not failed.blind and failed.untempered <= sync.limit:
        return found + (
            f"At temperature 1 the two agree ({failed.untempered:.4f}): the sampler reports raw log-probabilities, before "
            f"temperature {sync.temperature}; it must be started with logprobs_mode='processed_logprobs'"
        )
    if sync.adapting is not None:
        return found + adapters_fault(sync, sync.adapting.adapters, failed)
    names = [name for name, _ in sync.policy.named_full_tensors()]
    if unsent := [name for name in names if name not in sync.sent]:
        return found + f"{len(unsent)} of {len(names)} tensors were never sent; the first is {unsent[0]}"
    sync.sampler.reset_cache()
    if sync.gate().passes(sync.limit):
        return found + "After a reset of the prefix cache the two agree: the sampler answered from prefixes cached under the old weights"
    parts = blocks(names)
    experts = ExpertDoctor(sync, [block for block, _ in parts])
    for block, members in parts:
        sync.sampler.load(sync.stream(lambda name, members=members: name in members))
        sync.sampler.reset_cache()
        if repaired(sync, failed):
            why = f"Sending {block} again closed the gap: the sampler had not taken it; its first tensor is {members[0]}"
            return found + why + experts.named(block)
    sync.sampler.load(sync.stream())
    sync.sampler.reset_cache()
    result = sync.gate()
    again = result.exp_abs_dlogp
    if closed(result, failed, sync.limit):
        return found + "Sending all tensors again closed the gap, no single block did: the first transfer was incomplete"
    if result.blind:
        return found + "Sending everything again did not change it: look for NaN in the weights, or start the sampler with rollout.eager"
    if sync.policy.config.tie_word_embeddings:
        return found + (
            f"Sending everything again left it at {again:.4f}, and this model ties lm_head to the embedding: the sampler keeps an old "
            "copy of lm_head.weight (vLLM packs it on CPU); its post-load step must run after the embedding has been loaded"
        )
    return found + (
        f"Sending everything again left it at {again:.4f}: the sampler computes something else than the trainer (other dtype, other RoPE "
        "length, a kernel fault)"
    )


def repaired(sync: WeightSync, failed: GateResult) -> bool:
    return closed(sync.gate(), failed, sync.limit)


def closed(now: GateResult, failed: GateResult, limit: float) -> bool:
    """The gate, or at least most of the gap that was.

    Other tokens are sampled each time, and one in two hundred can make up a mean exp|Δ| that is far off: the same broken weights have
    shown 56.5 and 2.7. Mean |Δ| tells the two states apart on any of them.
    """
    return now.passes(limit) or (not now.blind and now.abs_dlogp <= failed.abs_dlogp / 4)


def adapters_fault(sync: WeightSync, adapters: Adapters, failed: GateResult) -> str:
    """Where adapters alone go over. The trainer leaves out one after the other, until it computes what the sampler does."""
    sync.sampler.reset_cache()
    if sync.gate().passes(sync.limit):
        return "After a reset of the prefix cache the two agree: the sampler answered from prefixes cached under the old weights"
    parts = [("the adapters, as if none were loaded", [*adapters.layers])]
    parts += [(f"the adapter of {block}", members) for block, members in blocks([f"{name}.weight" for name in adapters.layers])]
    for what, members in parts:
        with adapters.without([member.removesuffix(".weight") for member in members]):
            if repaired(sync, failed):
                return f"The sampler computes without {what}; the first layer is {members[0].removesuffix('.weight')}"
    sync.bring()
    sync.sampler.reset_cache()
    result = sync.gate()
    if closed(result, failed, sync.limit):
        return "Loading the adapters again closed the gap: the sampler had not taken them"
    return (
        f"Loading the adapters again left it at {result.exp_abs_dlogp:.4f}: the sampler has another base than the trainer, or computes "
        "something else (other dtype, other RoPE length, a kernel fault)"
    )


def blocks(names: list[str]) -> list[tuple[str, list[str]]]:
    """Tensors grouped by the module that vLLM may fuse them into, in model order. Where a layer has experts, they, their router and what
    they share are modules of their own.

    Worked example: `model.layers.0.self_attn.q_proj.weight` and `….k_proj.weight` → block `model.layers.0.self_attn`;
    `model.embed_tokens.weight` → block `model.embed_tokens`; `model.layers.0.mlp.experts.3.up_proj.weight` → `model.layers.0.mlp.experts`.
    """
    mixtures = {name.partition(".experts.")[0] for name in names if ".experts." in name}
    grouped: dict[str, list[str]] = {}
    for name in names:
        block = module_of(name, below=1)
        grouped.setdefault(module_of(name, below=2) if block in mixtures else block, []).append(name)
    return list(grouped.items())
