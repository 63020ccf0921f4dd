"""16-bit products in fp32, a slice at a time, against fp64: each side the longest, into 16 and 32 bits, over and onto what is there."""

import pytest
import torch

import soundrl.kernels.cpu_product as module
from soundrl.kernels.cpu_product import multiplies, widened_product


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "k", "n"), [(3, 5, 400), (3, 400, 5), (400, 3, 5), (1, 1, 1), (0, 3, 5), (7, 7, 7)])
def test_equals_fp64(monkeypatch, dtype, m, k, n):
    monkeypatch.setattr(module, "SLICE", 64 * 7)
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*size, generator=rng).to(dtype) for size in ((m, k), (n, k)))
    for b_kn in (b.t(), b.t().contiguous()):
        for wide, add in ((torch.float32, False), (torch.float32, True), (dtype, False)):
            out = torch.randn(m, n, generator=rng).to(wide)
            exact = a.double() @ b_kn.double() + (out.double() if add else 0)
            place = out.data_ptr()
            widened_product(a, b_kn, out, add)
            assert out.data_ptr() == place and torch.allclose(out.double(), exact, rtol=2 * torch.finfo(wide).eps, atol=1e-4)


def test_fp32_needs_no_instructions_of_its_own():
    assert multiplies(torch.float32) and multiplies(torch.float64) and isinstance(multiplies(torch.bfloat16), bool)
