"""The kernels inside plain transformers models, PEFT's modules, FSDP2 and verl's signatures, against the same by logits and autograd.

TRL, verl and PEFT themselves are run by `make adapters`: here are modules of PEFT's shape, and formulas of verl's.
"""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import start
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from soundrl.kernels.adapters.causal_lm import Rollouts, bounds, rl_loss, token_logprobs
from soundrl.kernels.adapters.head import head_of
from soundrl.kernels.adapters.trl import rule_of
from soundrl.kernels.adapters.verl import LOSSES, RULES, compute_policy_loss, verl_functions
from soundrl.kernels.loss_rule import LossRule

V = 61
SMALL = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
SMALL |= {"num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.4}
MODELS = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 2.0, "sliding_window": 64},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
}


def model_of(kind: str, **changes) -> nn.Module:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | MODELS.get(kind, {}) | changes))
    return model.float().train()


def batch(seed: int = 0):
    """Three rows of 9: prompts padded on the left, responses on the right, one row without a trained token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, V, (3, 9), generator=generator)
    place = torch.arange(9)
    attention = (place >= torch.tensor([[2], [0], [1]])) & (place < torch.tensor([[9], [6], [8]]))
    mask = attention & (place >= 4) & torch.tensor([[True], [True], [False]])
    return ids, attention.long(), mask, torch.randn(3, 9, generator=generator)


def naive(model, ids, attention_mask, temperature=1.0, **inputs):
    """[B, L] log-probability of each token, entropy, log-sum-exp, whether it is a largest: of the model's own logits."""
    z = model(input_ids=ids, attention_mask=attention_mask, **inputs).logits[:, :-1].float() / temperature
    logp = z.log_softmax(-1)
    logprob = logp.gather(-1, ids[:, 1:, None])[..., 0]
    found = logprob, -(logp.exp() * logp).sum(-1), z.logsumexp(-1), (logprob == logp.amax(-1)).float()
    return [nn.functional.pad(x, (1, 0)) for x in found]


def gradients(model, loss) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


def assert_same(ours, wanted, tolerance=2e-6):
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", MODELS)
def test_log_probabilities_are_those_of_the_models_logits(kind):
    model, (ids, attention, mask, noise) = model_of(kind), batch()
    if kind == "llama":
        model.gradient_checkpointing_enable()
    wanted = naive(model, ids, attention, 0.7)
    of_naive = gradients(model, (noise * mask * (wanted[0] + 0.3 * wanted[1])).sum())
    found = token_logprobs(model, ids, attention, mask, temperature=0.7)
    assert_same([x.float() for x in found], [x * mask for x in wanted])
    assert_same(gradients(model, (noise * (found.logprob + 0.3 * found.entropy)).sum()), of_naive)
    assert "forward" not in vars(model) and "forward" not in vars(model.get_output_embeddings())


def clipped(logprob, old, advantages, mask, low=0.2, high=0.28):
    ratio = (logprob - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages) * mask


@pytest.mark.parametrize("variant", ["dapo", "grpo"])
def test_the_loss_is_that_of_the_models_logits(variant):
    model, (ids, attention, mask, noise) = model_of("qwen2"), batch()
    with torch.no_grad():
        old = naive(model, ids, attention)[0] + 0.3 * noise
    advantages = torch.tensor([1.0, -0.5, 2.0])
    loss_BL = clipped(naive(model, ids, attention)[0], old, advantages[:, None], mask)
    count = float(mask.sum()) if variant == "dapo" else 3.0
    wanted = (loss_BL if variant == "dapo" else loss_BL / mask.sum(1, keepdim=True).clamp(min=1)).sum() / count
    of_naive = gradients(model, wanted)
    rule = LossRule(variant=variant, dual_clip=float("inf"))
    rollouts = Rollouts(ids=ids, mask=mask, advantages=advantages, attention_mask=attention, old_logprob=old)
    loss, metrics, scored = rl_loss(model, rollouts, count, rule=rule)
    assert_same([loss], [wanted])
    assert_same(gradients(model, loss), of_naive)
    assert metrics["tokens"] == mask.sum() and scored.logprob.shape == ids.shape and not scored.logprob[~mask].any()


def test_packed_rows_are_told_apart_by_their_positions():
    model, (ids, _, _, noise) = model_of("llama"), batch()
    one, two = ids[:1, :4], ids[1:2, :5]
    mask, advantages = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 1, 1]]).bool(), torch.tensor([[1.0] * 4 + [-0.5] * 5])
    alone = [naive(model, row, torch.ones_like(row))[0] for row in (one, two)]
    old = torch.cat(alone, 1).detach() + 0.3 * noise[:1]
    loss_1L = clipped(torch.cat(alone, 1), old, advantages, mask)
    of_naive = gradients(model, wanted := (loss_1L[:, :4].sum() / 2 + loss_1L[:, 4:].sum() / 2) / 2)
    positions = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])}
    rollouts = Rollouts(ids=torch.cat([one, two], 1), mask=mask, advantages=advantages, old_logprob=old, inputs=positions)
    loss, *_ = rl_loss(model, rollouts, 2.0, rule=LossRule(variant="grpo", dual_clip=float("inf")))
    assert_same([loss], [wanted])
    assert_same(gradients(model, loss), of_naive)
    with pytest.raises(ValueError, match="trains the first token of a sequence"):
        token_logprobs(model, rollouts.ids, None, mask | (positions["position_ids"] == 0), **positions)


def test_bounds_of_sequences():
    assert bounds(torch.zeros(2, 3)).tolist() == [0, 3, 6]
    assert bounds(torch.zeros(1, 4), torch.tensor([[1, 2, 0, 1]])).tolist() == [0, 2, 4]
    assert bounds(torch.zeros(2, 2), torch.tensor([[0, 1], [1, 0]])).tolist() == [0, 2, 3, 4]


def test_an_empty_mask_keeps_the_graph():
    model, (ids, attention, mask, _) = model_of("llama"), batch()
    none = torch.zeros_like(mask)
    assert not any(g.any() for g in gradients(model, token_logprobs(model, ids, attention, none).logprob.sum()))
    loss, *_ = rl_loss(model, Rollouts(ids=ids, mask=none, advantages=torch.ones(3), attention_mask=attention), 5.0)
    assert loss == 0 and not any(g.any() for g in gradients(model, loss))


def test_autocast_multiplies_in_its_own_type():
    """fp32 weights under bf16 autocast, the usual case: as the model's own logits, advantages of 0 included."""
    model, (ids, attention, mask, _) = model_of("llama"), batch()
    advantages = torch.tensor([1.0, 0.0, 1.0])
    with torch.autocast("cpu", torch.bfloat16):
        wanted = naive(model, ids, attention)
        of_naive = gradients(model, -(wanted[0] * mask * advantages[:, None]).sum() / 9)
        found = token_logprobs(model, ids, attention, mask)
        loss, *_ = rl_loss(model, Rollouts(ids=ids, mask=mask, advantages=advantages, attention_mask=attention), 9.0)
        ours = gradients(model, loss)
    assert_same(found[:3], [x * mask for x in wanted[:3]], 1e-5)
    for mine, theirs in zip(ours, of_naive, strict=True):
        assert mine.dtype == torch.float32 and (mine - theirs).norm() <= 0.02 * theirs.norm()


def test_what_a_model_does_to_its_logits_unknown_to_us_is_refused():
    model, (ids, attention, mask, _) = model_of("llama"), batch()
    inner = model.forward

    def scaled(**inputs):
        output = inner(**inputs)
        output.logits = 3 * output.logits
        return output

    model.forward = scaled
    with pytest.raises(ValueError, match=r"of LlamaForCausalLM changes logits .* pass LMHead\(weight, softcap=…, scale=…\)"):
        token_logprobs(model, ids, attention, mask)
    assert model.forward is scaled
    model.forward = inner
    assert head_of(model).scale == 1.0 and token_logprobs(model, ids, attention, mask).logprob.any()


def test_a_model_compiled_as_a_whole_is_refused():
    model, (ids, attention, mask, _) = model_of("llama"), batch()
    around = nn.Module()
    around._orig_mod = model  # what torch.compile(model) gives; model.compile() leaves the other mark
    for compiled in (around, model):
        with pytest.raises(ValueError, match=r"part of a compiled graph: compile the backbone alone, model.model.compile\(\)"):
            token_logprobs(compiled, ids, attention, mask)
        model._compiled_call_impl = print


class Lora(nn.Module):
    """peft.tuners.lora.Linear, as far as the head is concerned."""

    def __init__(self, base: nn.Linear, ranks: dict[str, int], dropout: float = 0.0):
        super().__init__()
        self.base_layer, self.scaling = base, {name: 0.5 + place for place, name in enumerate(ranks)}
        self.lora_A = nn.ModuleDict({name: nn.Linear(base.in_features, rank, bias=False) for name, rank in ranks.items()})
        self.lora_B = nn.ModuleDict({name: nn.Linear(rank, base.out_features, bias=False) for name, rank in ranks.items()})
        self.lora_dropout = nn.ModuleDict({name: nn.Dropout(dropout) if dropout else nn.Identity() for name in ranks})
        self.active_adapters, self.disable_adapters, self.merged_adapters = list(ranks), False, []
        self.lora_variant, self.use_dora = {}, {}
        base.requires_grad_(False)

    @property
    def merged(self):
        return bool(self.merged_adapters)

    def forward(self, x):
        out = self.base_layer(x)
        for name in [] if self.disable_adapters or self.merged else self.active_adapters:
            out = out + self.scaling[name] * self.lora_B[name](self.lora_A[name](x))
        return out


def with_lora(ranks, dropout=0.0):
    model = model_of("llama")
    model.lm_head = Lora(model.lm_head, ranks, dropout)
    return model, model.lm_head


@pytest.mark.parametrize("ranks", [{"default": 3}, {"one": 3, "two": 2}, {"default": 0}])
def test_lora_on_the_head_is_part_of_it(ranks):
    (model, layer), (ids, attention, mask, noise) = with_lora(ranks), batch()
    wanted = naive(model, ids, attention)[0]
    of_naive = gradients(model, (noise * mask * wanted).sum())
    found = token_logprobs(model, ids, attention, mask).logprob
    assert_same([found], [wanted * mask])
    of_ours = gradients(model, (noise * found).sum()) if ranks != {"default": 0} else of_naive
    assert_same(of_ours, of_naive)
    assert layer.base_layer.weight.grad is None
    layer.disable_adapters = True
    assert head_of(model).lora is None


def refused(model, said):
    with pytest.raises(ValueError, match=said):
        head_of(model)


def test_adapters_that_are_no_sum_are_refused():
    model, layer = with_lora({"default": 3}, dropout=0.1)
    refused(model, r"lora_dropout=0.1: set it to 0, or model.eval\(\)")
    assert head_of(model.eval()).lora is not None
    layer.merged_adapters = ["default"]
    assert head_of(model).lora is None  # it stands in the weight
    layer.active_adapters = ["other"]
    refused(model, r"merged that are not those active: model.unmerge_adapter\(\)")
    layer.active_adapters, layer.merged_adapters, layer.lora_variant = ["default"], [], {"default": object()}
    refused(model, "variant of LoRA .DoRA, ….: use plain LoRA there")
    layer.lora_variant = {}
    layer.lora_B["default"] = nn.Linear(3, V)
    refused(model, "with a bias of its own: set lora_bias=False")
    del layer.lora_A
    refused(model, "carries a Lora, which is not LoRA")


def test_modules_to_save_are_the_trained_copy():
    model = model_of("llama")
    wrapper = nn.Module()
    wrapper.original_module, copy = model.lm_head, nn.Linear(16, V)
    wrapper.modules_to_save = nn.ModuleDict({"default": copy})
    wrapper.active_adapters, wrapper.disable_adapters = ["default"], False
    model.lm_head = wrapper
    head = head_of(model)
    assert head.weight_VH is copy.weight and head.bias_V is copy.bias
    wrapper.disable_adapters = True
    assert head_of(model).weight_VH is wrapper.original_module.weight
    del wrapper.modules_to_save
    refused(model, "which trains parts of it")


class OtherLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_other_heads_are_refused_and_wrapped_ones_found():
    model = model_of("llama")
    plain = model.lm_head
    model.lm_head = nn.Module()
    model.lm_head.module = plain
    assert head_of(model).weight_VH is plain.weight
    assert head_of(nn.parallel.DataParallel(model)).weight_VH is plain.weight
    assert head_of(model, torch.bfloat16).weight_VH.dtype == torch.bfloat16
    model.lm_head = OtherLinear(16, V)
    refused(model, "is a OtherLinear, which does not compute what nn.Linear does")
    model.lm_head = nn.Linear(16, V)
    model.lm_head.weight = nn.Parameter(torch.zeros(V, 16, dtype=torch.int8), requires_grad=False)
    refused(model, "is quantised .Parameter of torch.int8.|is quantised .Tensor of torch.int8.")
    model.lm_head.weight = nn.Parameter(torch.zeros(0))
    refused(model, "shape .0,., its shards lie elsewhere: under ZeRO-3 call within deepspeed")
    refused(SimpleNamespace(), "of SimpleNamespace is not known")


def test_under_fsdp2_gradients_are_those_of_one_process(tmp_path):
    """The head in a group of its own and in the root's, tied and untied; a rank without a trained token takes part."""
    done = start([sys.executable, "tests/workers/fsdp_adapters.py", '{"ranks": 2}', str(tmp_path / "gaps.json")])
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gaps.json").read_text())
    assert len(found) == 8 and max(found.values()) < 1e-6, found


# verl's formulas (verl/trainer/ppo/core_algos.py), by hand.


def verl_mean(loss_BL, mask, mode, info):
    sums = (loss_BL * mask).sum(1)
    if mode == "token-mean":
        return sums.sum() / info["batch_num_tokens"] * info["dp_size"]
    if mode == "token-sum":
        return sums.sum() * info["dp_size"]
    if mode == "seq-mean-token-mean":
        sums = sums / mask.sum(1).clamp(min=1)
    return sums.sum() / info["global_batch_size"] * info["dp_size"] / (9 if mode.endswith("norm") else 1)


def verl_loss(mode, old, logprob, advantages, mask, c):
    ratio, low, high = (logprob - old).exp(), 1 - c.clip_ratio_low, 1 + c.clip_ratio_high
    if mode == "gspo":
        mean = ((logprob - old) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        ratio = (logprob - logprob.detach() + mean.detach()).exp()
    if mode == "cispo":
        return -ratio.clamp(low, high).detach() * advantages * logprob
    if mode == "sapo":
        tau = torch.where(advantages > 0, c.tau_pos, c.tau_neg)
        return -torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantages
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    return torch.where(advantages < 0, torch.minimum(-advantages * c.clip_ratio_c, loss), loss) if mode == "vanilla" else loss


class VerlConfig(SimpleNamespace):
    def get(self, name, default):
        return getattr(self, name, default)


@pytest.mark.parametrize(("mode", "aggregation"), sorted(RULES))
def test_losses_of_verl(mode, aggregation):
    *_, mask, noise = batch()
    info = {"dp_size": 2, "batch_num_tokens": 40, "global_batch_size": 8}
    config = VerlConfig(clip_ratio=0.2, clip_ratio_low=1.0 if mode == "cispo" else 0.2, clip_ratio_high=0.28, clip_ratio_c=3.0)
    config.tau_pos, config.tau_neg, config.global_batch_info = 1.0, 1.05, info
    old, weights = -noise.abs() - 0.1, noise.abs() + 0.5
    logprob = (old - 0.8 * noise.roll(1, 0)).clamp(max=0).requires_grad_()
    advantages = noise.roll(3, 1)
    shown = "seq-mean-token-mean" if mode == "sapo" else aggregation
    wanted = verl_mean(weights * verl_loss(mode, old, logprob, advantages, mask, config), mask, shown, info)
    (of_wanted,) = torch.autograd.grad(wanted, logprob)
    (name,) = [name for name, known in LOSSES.items() if known == mode]
    loss, metrics = verl_functions().policy_losses[name](old, logprob, advantages, mask.long(), aggregation, config, weights)
    assert_same([loss, *torch.autograd.grad(loss, logprob)], [wanted, of_wanted])
    assert metrics["actor/ppo_kl"] == pytest.approx((old - logprob)[mask].mean().item(), abs=1e-6)
    if mode == "vanilla":
        ratio = (logprob - old).exp()
        beyond = torch.where(advantages < 0, ratio < 0.8, ratio > 1.28)
        assert metrics["actor/pg_clipfrac"] == pytest.approx(beyond[mask].float().mean().item())


def test_what_verl_has_and_we_do_not_is_refused():
    *_, mask, noise = batch()
    config = VerlConfig(clip_ratio=0.2, clip_ratio_low=None, clip_ratio_high=None, global_batch_info={"dp_size": 2})
    for mode, aggregation, said in (
        ("gspo", "token-mean", "use seq-mean-token-mean"),
        ("cispo", "token-mean", "clip_ratio_low=0.2 bounds cispo's ratio from below"),
        ("vanilla", "token-mean", "no batch_num_tokens, needed with dp_size=2"),
    ):
        with pytest.raises(ValueError, match=said):
            compute_policy_loss(noise, noise, noise, mask, aggregation, config, mode=mode)


def test_verls_log_probabilities():
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(2, 5, 8, generator=generator), torch.randn(13, 8, generator=generator)
    ids = torch.randint(13, (2, 5), generator=generator)
    wanted = (hidden @ weight.t() / 0.8).log_softmax(-1)
    functions = verl_functions()
    logprob, entropy = functions.FusedLinearForPPO(chunk_size=4)(hidden, weight, ids.int(), temperature=0.8)
    assert_same([logprob, entropy], [wanted.gather(-1, ids[..., None])[..., 0], -(wanted.exp() * wanted).sum(-1)], 1e-5)
    found = functions.logprobs_from_logits((hidden @ weight.t()).bfloat16(), ids, inplace_backward=False)
    rounded = (hidden @ weight.t()).bfloat16().float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    assert found.dtype == torch.float32
    assert_same([found], [rounded], 1e-5)


TRL = {"loss_type": "dapo", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "importance_sampling_level": "token"}
TRL |= {"top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "_entropy_bonus_enabled": False}


def trl(**changes):
    of_args = {"delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
    args = {name: changes.pop(name, value) for name, value in of_args.items()}
    return SimpleNamespace(args=SimpleNamespace(**args), **TRL | changes)


def test_trls_options_are_a_rule_or_refused():
    rule = rule_of(trl(loss_type="cispo", epsilon_high=5.0, beta=0.04, use_bias_correction_kl=True))
    assert (rule.variant, rule.clip_high, rule.kl, rule.kl_coef, rule.kl_times_ratio) == ("cispo", 4.0, "k3", 0.04, True)
    assert rule_of(trl()).dual_clip == float("inf") and rule_of(trl(delta=1.5)).dual_clip == 1.5
    assert rule_of(trl(loss_type="grpo", importance_sampling_level="sequence")).variant == "gspo"
    for options, said in (
        ({"loss_type": "vespo"}, "loss_type='vespo'"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level='sequence' with loss_type='dapo'"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile"),
        ({"off_policy_mask_threshold": 0.1}, "off_policy_mask_threshold"),
        ({"loss_type": "grpo", "_entropy_bonus_enabled": True}, "an entropy bonus with loss_type='grpo'"),
        ({"loss_type": "cispo"}, "cispo with epsilon_high=0.2 < 1"),
        ({"delta": 1.1}, "delta=1.1 ≤ 1"),
    ):
        with pytest.raises(ValueError, match=f"^{said}.* has no fused loss; take class Trainer"):
            rule_of(trl(**options))
