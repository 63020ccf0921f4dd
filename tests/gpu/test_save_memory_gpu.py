"""Weights and moments on the host, on one GPU: what sleeps leaves the card, what wakes is the same, and streamed moments change no bit."""

import os

import pytest
import torch
from tiny import fixed_samples, write_tiny

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.memory import moments
from soundrl.engine.memory.moments import STATES, local_rows
from soundrl.engine.packing import pack
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.trainer import Trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """`trainer("offload", …)`, each with the same weights."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
    ranks, folder = Ranks.start(), write_tiny(tmp_path_factory.mktemp("model"), "qwen3")

    def made(*ways: str) -> Trainer:
        model = Model(path=str(folder), dtype="bfloat16", max_length=128, save_memory=ways)  # type: ignore[arg-type]
        return Trainer(Policy(folder, load_tokenizer(folder), model, ranks), Optim(lr=1e-3, microbatch_tokens=256), Loss(), 1.0)

    yield made
    ranks.stop()


def step(trainer: Trainer, number: int) -> None:
    """With a gradient that is the same for all."""
    draw = torch.Generator(trainer.ranks.device).manual_seed(number)
    for parameter in trainer.policy.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        local_rows(parameter.grad).normal_(generator=draw)
    trainer.update(1e-3)


def state(trainer: Trainer) -> list[torch.Tensor]:
    out = [local_rows(parameter.detach()).cpu().clone() for parameter in trainer.policy.model.parameters()]
    return out + [local_rows(of[kind]).cpu().clone() for of in trainer.optimizer.state.values() for kind in STATES]


def test_ways_to_save_memory_change_no_bit_and_leave_the_card(trainer, monkeypatch):
    monkeypatch.setattr(moments, "BLOCK", 4096)  # several, so that places are used again while copies run
    plain = trainer()
    for number in range(5):
        step(plain, number)
    expected, batch = state(plain), pack(fixed_samples()[:8], plain.ranks.device)
    with torch.no_grad():
        awake = plain.policy.response_logprobs(batch, 1.0)[0]
    del plain
    for ways in (("offload",), ("moments",), ("offload", "moments")):
        other = trainer(*ways)
        for number in range(5):
            step(other, number)
            held = torch.cuda.memory_allocated()
            other.sleep()
            freed = held - torch.cuda.memory_allocated()
            if "offload" in ways:
                bytes_each = 4 if "moments" in ways else 12
                assert freed >= bytes_each * sum(p.numel() for p in other.policy.model.parameters()), ways
                with torch.no_grad():
                    asleep = other.policy.response_logprobs(batch, 1.0)[0]
                names = dict(other.policy.named_full_tensors(torch.float32))
                assert all(tensor.is_cuda for tensor in names.values())
            other.wake()
        other.arrive()
        assert all(torch.equal(a, b) for a, b in zip(state(other), expected, strict=True)), ways
        if "offload" in ways:
            assert torch.allclose(asleep, awake, atol=1e-5)
        del other
