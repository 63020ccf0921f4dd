"""The policy on one GPU against fp64 on the host: error within twice that of a plain bf16 forward of transformers."""

import os

import pytest
import torch
from tiny import fixed_samples, write_tiny
from transformers import AutoModelForCausalLM

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from soundrl.engine.config import Model
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.packing import pack
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks


@pytest.fixture(scope="module")
def ranks():
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    ranks = Ranks.start()
    yield ranks
    ranks.stop()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "opt"])
def test_bf16_logprobs_stay_within_twice_the_error_of_transformers(ranks, tmp_path, kind):
    folder = write_tiny(tmp_path / kind, kind)
    policy = Policy(folder, load_tokenizer(folder), Model(path=str(folder), dtype="bfloat16", max_length=128), ranks)
    samples = fixed_samples()
    with torch.no_grad():
        ours, _ = policy.response_logprobs(pack(samples, ranks.device), 1.0)

    def plain(dtype: torch.dtype, device: str) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(device)
        out = []
        with torch.no_grad():
            for s in samples:
                ids = torch.tensor([[*s.prompt_tokens, *s.tokens]], device=device)
                log_p = torch.log_softmax(model(ids).logits[0].double(), -1)
                first = len(s.prompt_tokens) - 1
                out += [log_p[first + j, token].item() for j, token in enumerate(s.tokens)]
        return torch.tensor(out, dtype=torch.float64)

    truth = plain(torch.float64, "cpu")
    budget = (plain(torch.bfloat16, "cuda") - truth).abs().mean()
    assert (ours.double().cpu() - truth).abs().mean() <= 2 * budget
