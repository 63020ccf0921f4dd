"""transformers' attention hook: packed rows against padded eager models, what is refused, flash-attn's call."""

import sys
from types import ModuleType

import pytest
import torch
from tiny import SHAPE, fixed_samples
from transformers import AutoConfig, AutoModelForCausalLM

from soundrl.engine import attention
from soundrl.engine.attention import HOOK, attend_within, check_attention, flash_function
from soundrl.kernels import varlen_launch

CPU = torch.device("cpu")
KINDS = {
    "llama": {},
    "qwen2": {"head_dim": None},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
}


def tiny(kind: str, implementation: str, **more) -> torch.nn.Module:
    shape = {k: v for k, v in (SHAPE | {"initializer_range": 0.1} | KINDS.get(kind, {}) | more).items() if v is not None}
    config = AutoConfig.for_model(kind, vocab_size=20, pad_token_id=0, eos_token_id=1, bos_token_id=1, use_cache=False, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=implementation)


def logprobs_and_gradients(model, logits_of) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities of every next token of the samples, and the gradient of their weighted sum."""
    samples = fixed_samples(4)
    ids = [torch.tensor([*s.prompt_tokens, *s.tokens]) for s in samples]
    logprob = torch.cat([row[:-1].log_softmax(-1).gather(1, i[1:, None])[:, 0] for row, i in zip(logits_of(model, ids), ids, strict=True)])
    (logprob * torch.linspace(-1, 1, len(logprob))).sum().backward()
    return logprob.detach(), {name: p.grad for name, p in model.named_parameters()}


def padded(model, ids):
    width = max(map(len, ids))
    rows = torch.stack([torch.nn.functional.pad(i, (0, width - len(i))) for i in ids])
    mask = torch.stack([torch.arange(width) < len(i) for i in ids]).long()
    return [row[: len(i)] for row, i in zip(model(input_ids=rows, attention_mask=mask).logits, ids, strict=True)]


def packed(backend: str):
    def logits_of(model, ids):
        cu_seqlens = torch.tensor([0, *map(len, ids)]).cumsum(0)
        row = model(
            input_ids=torch.cat(ids)[None],
            position_ids=torch.cat([torch.arange(len(i)) for i in ids])[None],
            attend=attend_within(backend, cu_seqlens, int(cu_seqlens[-1])),
        ).logits[0]
        return row.split([len(i) for i in ids])

    return logits_of


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_padded_transformers(monkeypatch, kind):
    """Kernels (interpreted) and reference against eager attention over a padded batch: head norms, RoPE, windows and softcaps."""
    launches, launch = [], varlen_launch.launch_all
    monkeypatch.setattr(varlen_launch, "launch_all", lambda which, *a: launches.append(which) or launch(which, *a))
    expected, expected_gradients = logprobs_and_gradients(tiny(kind, "eager"), padded)
    for backend in ("triton", "sdpa"):
        ours, gradients = logprobs_and_gradients(tiny(kind, HOOK), packed(backend))
        assert (ours - expected).abs().max() <= 1e-5
        scale = max(g.abs().max() for g in expected_gradients.values())
        for name, g in expected_gradients.items():
            assert (gradients[name] - g).abs().max() <= 1e-5 * scale, name
        assert launches.count("forward") == 2  # witness: one forward launch a layer by "triton", none by "sdpa"
    if kind in ("mistral", "gemma2"):  # inverse: without its window and softcap it is another function
        plain, _ = logprobs_and_gradients(tiny(kind, HOOK, sliding_window=None, attn_logit_softcapping=None), packed("sdpa"))
        assert (plain - expected).abs().max() > 1e-3


def hooked(**change):
    module = torch.nn.Module()
    x = torch.zeros(1, 2, 3, 16)
    seen = {}

    def attend(q, k, v, **settings):
        seen.update(settings)
        return q

    arguments = {"scaling": 0.5, "sliding_window": 7, "softcap": 3.0, "attend": attend, "position_ids": None} | change
    if "is_causal_module" in arguments:
        module.is_causal = arguments.pop("is_causal_module")  # type: ignore[assignment]
    out, _ = attention.packed_attention(module, x, x, x, None, **arguments)
    return out.shape, seen


def test_the_hook_hands_on_scale_window_and_softcap_and_refuses_the_rest():
    assert hooked() == ((1, 3, 2, 16), {"scale": 0.5, "window": 7, "softcap": 3.0})
    for change, said in (
        ({"s_aux": torch.zeros(2)}, "s_aux"),
        ({"position_bias": torch.zeros(2)}, "position_bias"),
        ({"dropout": 0.1}, r"dropout 0\.1"),
        ({"is_causal": False}, "attention to later tokens"),
        ({"is_causal_module": False}, "attention to later tokens"),
    ):
        with pytest.raises(ValueError, match=f"model.path: Module asks for {said}, which packed attention does not have"):
            hooked(**change)


def test_models_and_machines_that_cannot_are_refused():
    llama = tiny("llama", HOOK)
    check_attention("triton", llama, torch.float32, CPU)
    with pytest.raises(ValueError, match=r"flash needs a GPU and 16 bits, not torch.bfloat16 on cpu; set --model.attention triton"):
        check_attention("flash", llama, torch.bfloat16, CPU)
    with pytest.raises(ValueError, match=r"flash needs a GPU and 16 bits, not torch.float32 on cuda"):
        check_attention("flash", llama, torch.float32, torch.device("cuda"))
    llama.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match=r"layers of type linear_attention \(llama\), which would mix the sequences of a packed row"):
        check_attention("triton", llama, torch.float32, CPU)
    llama.config.layer_types = None
    llama.is_backend_compatible = lambda: False
    with pytest.raises(ValueError, match="calls no attention interface"):
        check_attention("triton", llama, torch.float32, CPU)


def test_flash_takes_the_newest_that_runs_and_says_how_to_install(monkeypatch):
    calls = []

    def fake(version: int):
        module = ModuleType("flash")
        module.flash_attn_varlen_func = lambda q, k, v, **kw: calls.append((version, kw)) or (q, None)  # type: ignore[attr-defined]
        return module

    for name in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, name, None)  # import fails, whatever is installed
    flash_function.cache_clear()
    with pytest.raises(
        ValueError, match=r"flash-attn \(flash_attn\) cannot be imported; pip install .*flash-attn, or set --model.attention triton"
    ):
        flash_function(8)
    monkeypatch.setitem(sys.modules, "flash_attn", fake(2))
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fake(3))
    flash_function.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    q, cu_seqlens = torch.zeros(5, 2, 16), torch.tensor([0, 2, 5])
    attend = attend_within("flash", cu_seqlens, 5)
    assert attend(q, q, q, scale=0.5, window=4, softcap=2.0) is q
    attend(q, q, q, scale=0.5, window=None, softcap=None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 6))
    attend(q, q, q, scale=0.5, window=None, softcap=None)
    assert [version for version, _ in calls] == [3, 3, 2]
    first, second = calls[0][1], calls[1][1]
    assert first["cu_seqlens_q"].tolist() == [0, 2, 5] and first["cu_seqlens_q"].dtype == torch.int32
    assert (first["max_seqlen_q"], first["softmax_scale"], first["causal"], first["deterministic"]) == (3, 0.5, True, True)
    assert first["window_size"] == (3, 0) and first["softcap"] == 2.0  # its window leaves the token's own key out
    assert "window_size" not in second and "softcap" not in second
    flash_function.cache_clear()
