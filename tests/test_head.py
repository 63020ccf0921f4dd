"""The fused head inside transformers' models: equal to the logits they would have made, for models that bound or bias them."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPTJConfig, GraniteConfig, LlamaConfig

from soundrl.engine.head import Head
from soundrl.kernels.linear_logprob import linear_logprob

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGS = {
    "softcap": Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager"),
    "tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "multiplied": CohereConfig(**SMALL, num_key_value_heads=1, logit_scale=0.3, attn_implementation="eager"),
    "divided": GraniteConfig(**SMALL, num_key_value_heads=1, logits_scaling=7.0, attn_implementation="eager"),
    "bias": GPTJConfig(vocab_size=40, n_embd=16, n_layer=1, n_head=2, rotary_dim=8, n_positions=32),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_log_probabilities_and_gradients_equal_those_of_the_models_logits(kind):
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), dtype=torch.float32).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    plain.tie_weights()
    fused = copy.deepcopy(plain)
    ids = torch.randint(40, (1, 9))
    keep, targets = torch.tensor([2, 3, 7]), ids[0, [3, 4, 8]]
    expected = torch.log_softmax(plain(input_ids=ids).logits[0, keep], -1).gather(-1, targets[:, None]).squeeze(-1)
    expected.sum().backward()
    head = Head(fused)
    head.compute = lambda hidden, own: linear_logprob(hidden, own, targets).logprob
    # Not every model takes logits_to_keep; the head sees the hidden states it would have multiplied.
    rows = {"logits_to_keep": keep} if kind != "bias" else {}
    if not rows:
        head.compute = lambda hidden, own: linear_logprob(hidden[keep], own, targets).logprob
    ours = fused(input_ids=ids, **rows).logits
    ours.sum().backward()
    assert torch.allclose(ours, expected, atol=1e-5)
    if kind in ("softcap", "multiplied", "divided"):
        # Inverse: without the bound or the factor the log-probabilities would be others.
        assert not torch.allclose(ours, linear_logprob(plain.model(ids)[0][0, keep], plain.lm_head.weight, targets).logprob, atol=1e-2)
    if kind == "softcap":
        assert head.softcap == 2.0 and plain.config.final_logit_softcapping == 2.0
    for (name, p), (_, q) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.allclose(p.grad, q.grad, atol=1e-5), name


@pytest.mark.parametrize(("name", "told"), [("lm_head_multiplier", "0.5, None"), ("logits_soft_cap", "1, 0.5")])
def test_a_model_that_scales_its_logits_in_another_way_is_refused(name, told):
    config = LlamaConfig(**SMALL)
    setattr(config, name, 0.5)
    with pytest.raises(ValueError, match=rf"LlamaForCausalLM scales or bounds its logits \(by {told}\) in a way that the"):
        Head(AutoModelForCausalLM.from_config(config))


def test_the_head_computes_only_when_asked():
    model = AutoModelForCausalLM.from_config(CONFIGS["tied"])
    Head(model)
    with pytest.raises(AssertionError, match=r"only within Policy\.run"):
        model(input_ids=torch.tensor([[1, 2]]))
