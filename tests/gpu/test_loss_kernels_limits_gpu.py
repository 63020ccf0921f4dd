"""What the loss kernels promise beyond their values, on one GPU: equal bits, flat memory, one compilation for every length."""

import functools
import importlib

import pytest
import torch
from gpu_cases import DEVICE, FULL, TYPES, Loss, draw, off, peak_mib, targets, torch_both
from torch import Tensor
from torch.nn.functional import linear
from triton.runtime.jit import JITFunction

from soundrl.kernels.advantage import RewardGroups
from soundrl.kernels.head_chunks import USUAL, head_memory
from soundrl.kernels.linear_logprob import linear_logprob
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.logprob import selective_logprob
from soundrl.kernels.policy_loss import policy_loss


def test_a_hundred_repeats_are_equal_bit_for_bit():
    case = Loss(700, 256, 5003, torch.bfloat16)
    budget = 256 * 5003 * 2
    first, forward = case.fused(FULL, memory_budget=budget), linear_logprob(case.hidden_TH, case.weight_VH, case.targets_T)
    for _ in range(100):
        again = case.fused(FULL, memory_budget=budget)
        assert all(torch.equal(again[name], x) for name, x in first.items())
        assert all(map(torch.equal, linear_logprob(case.hidden_TH, case.weight_VH, case.targets_T), forward))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_streamed_rows_bits_do_not_depend_on_its_batch(dtype):
    streamed = functools.partial(linear_logprob, memory_budget=0)
    hidden_TH, weight_VH, targets_T = draw(613, 256, dtype=dtype), draw(5003, 256, seed=1, dtype=dtype) / 8, targets(613, 5003)
    whole = streamed(hidden_TH, weight_VH, targets_T)
    order_T = torch.randperm(613, device=DEVICE)
    assert all(torch.equal(x[order_T], y) for x, y in zip(whole, streamed(hidden_TH[order_T], weight_VH, targets_T[order_T]), strict=True))
    for cut in (1, 128, 500):
        parts = [streamed(hidden_TH[rows], weight_VH, targets_T[rows]) for rows in (slice(cut), slice(cut, None))]
        assert all(torch.equal(x, torch.cat([a, b])) for x, a, b in zip(whole, *parts, strict=True))


def test_memory_of_the_streaming_forward_is_flat_in_the_vocabulary():
    """F6. The witness: torch's grows by 12 bytes or more a logit."""
    peaks, torchs = [], []
    for vocabulary in (32_768, 262_144):
        hidden_TH, weight_VH = draw(8192, 256, dtype=torch.bfloat16), draw(vocabulary, 256, seed=1, dtype=torch.bfloat16)
        targets_T = targets(8192, vocabulary)
        with torch.no_grad():
            peaks.append(peak_mib(lambda h=hidden_TH, w=weight_VH, t=targets_T: linear_logprob(h, w, t, memory_budget=0)))
            torchs.append(peak_mib(lambda h=hidden_TH[:512], w=weight_VH, t=targets_T[:512]: torch_both(linear(h, w), t)))
    assert max(peaks) <= 64 and abs(peaks[1] - peaks[0]) < 0.1
    assert torchs[1] > 4 * torchs[0]


def test_memory_of_the_fused_loss():
    """F4 at S1: what `head_memory` plans, with 8,192 tokens in one chunk and twice as many in four."""
    for tokens, rows in ((8192, 8192), (16_384, 4096)):
        hidden_TH, weight_VH = draw(tokens, 4096, dtype=torch.bfloat16), draw(151_936, 4096, seed=1, dtype=torch.bfloat16) / 32
        targets_T, row_T = targets(tokens, 151_936), draw(tokens, seed=2)

        def step(h=hidden_TH, w=weight_VH, t=targets_T, row_T=row_T) -> tuple[Tensor, ...]:
            h, w = h.detach().requires_grad_(), w.detach().requires_grad_()
            return torch.autograd.grad(linear_policy_loss(h, w, t, None, row_T, None, 1.0)[0], (h, w))

        planned = head_memory(tokens, 4096, 151_936, 2, False, USUAL, True)
        assert planned.rows == rows and peak_mib(step) - planned.peak / 2**20 <= 80, (tokens, planned)
        del hidden_TH, weight_VH, step
        torch.cuda.empty_cache()


def compiled_kernels() -> dict[str, int]:
    """How many binaries each Triton kernel of soundrl has been compiled to in this process."""
    modules = [
        importlib.import_module(f"soundrl.kernels.{name}")
        for name in ("advantage", "linear_logprob_triton", "logprob_triton", "policy_loss_triton")
    ]
    kernels = {x for module in modules for x in vars(module).values() if isinstance(x, JITFunction)}
    device = torch.cuda.current_device()
    return {kernel.__name__: len(kernel.device_caches[device][0]) for kernel in kernels if device in kernel.device_caches}


def test_one_compilation_serves_every_length():
    weight_VH = draw(1003, 96, seed=1, dtype=torch.bfloat16)

    def step(tokens: int) -> None:
        hidden_TH = draw(tokens, 96, dtype=torch.bfloat16).requires_grad_()
        targets_T, cut = targets(tokens, 1003), tokens // 3
        cu = torch.tensor([0, cut, tokens], device=DEVICE)
        rewards_N = draw(2, seed=7)
        groups = RewardGroups(rewards_N=rewards_N, group_offsets=torch.tensor([0, 2], device=DEVICE))
        rows = (targets_T, draw(tokens, seed=3), groups, None, 1.0)
        linear_policy_loss(hidden_TH, weight_VH, *rows, cu_seqlens=cu)[0].backward()
        logprob_T, entropy_T, *_ = selective_logprob(linear(hidden_TH, weight_VH), targets_T)
        (logprob_T.sum() + entropy_T.sum()).backward()
        linear_logprob(hidden_TH, weight_VH, targets_T)
        linear_logprob(hidden_TH, weight_VH, targets_T, memory_budget=0)

    step(1000)
    before = compiled_kernels()
    assert all(
        before[name] >= 1 for name in ("linear_logprob_kernel", "logprob_backward_kernel", "policy_loss_kernel", "group_advantage_kernel")
    )
    for tokens in (1, 2, 3, 7, 15, 16, 17, 31, 48, 64, 100, 127, 128, 129, 255, 512, 999, 1024, 2048, 4097):
        step(tokens)
    assert compiled_kernels() == before


def test_torch_compile_in_one_graph_for_all_lengths():
    weight_VH = draw(1003, 64, seed=1, dtype=torch.bfloat16)

    def step(hidden_TH, targets_T, old_T, advantages_T):
        fused = linear_policy_loss(hidden_TH, weight_VH, targets_T, old_T, advantages_T, None, 64.0)[0]
        logprob_T, entropy_T, *_ = selective_logprob(linear(hidden_TH, weight_VH), targets_T)
        return fused * 2 + policy_loss(logprob_T, old_T, advantages_T, None, 64.0)[0] + 0.01 * entropy_T.sum()

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="inductor", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (50, 33, 200, 129):
            rows = (targets(tokens, 1003), draw(tokens, seed=3) - 7, draw(tokens, seed=4))
            out = []
            for function in (step, compiled):
                leaf = draw(tokens, 64, dtype=torch.bfloat16).requires_grad_()
                loss = function(leaf, *rows)
                out.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
            assert off(out[1][0], out[0][0].double()) <= 1e-5 and off(out[1][1], out[0][1].double()) <= 1e-2
