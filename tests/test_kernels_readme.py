"""What kernels/README.md shows runs: a program for each function, and the lines for each host (TRL's and verl's where installed)."""

import importlib.util
import os
import re
import runpy
import sys

import pytest
import torch
from conftest import ROOT

if "ADAPTERS" in os.environ:  # make adapters: hosts that are no dependency, behind everything that is installed
    sys.path.append(str(ROOT / os.environ["ADAPTERS"]))

README = (ROOT / "kernels" / "README.md").read_text()
SECTIONS = {section.split()[0]: section for section in re.split(r"^## ", README, flags=re.MULTILINE)[1:]}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FUNCTIONS = ["selective_logprob", "linear_logprob", "policy_loss", "group_advantage", "linear_policy_loss", "varlen_attention"]
PROGRAMS = [(name, number, text) for name in FUNCTIONS for number, text in enumerate(BLOCK.findall(SECTIONS[name]))]
GLUE = BLOCK.findall(SECTIONS["In"])


def test_each_function_has_a_program():
    assert list(SECTIONS)[2:] == FUNCTIONS
    assert all(f"{name}(" in text for name, _, text in PROGRAMS) and {name for name, *_ in PROGRAMS} == set(FUNCTIONS)


@pytest.mark.parametrize(("name", "number", "text"), PROGRAMS, ids=[f"{name}-{number}" for name, number, _ in PROGRAMS])
def test_programs_run(name, number, text, tmp_path):
    program = tmp_path / f"{name}.py"
    program.write_text(text)
    seen = runpy.run_path(str(program))
    if "model" in seen:
        trained = [p.grad for p in seen["model"].parameters() if p.grad is not None]
        assert seen["loss"].isfinite() and (trained or name == "policy_loss")  # that one clears its gradients


def test_the_page_says_first_that_nothing_was_measured_on_a_gpu():
    assert "**No figure on this page was measured on a GPU**" in README.partition("## ")[0]


HOSTS = ("rl_loss", "token_logprobs", "SoundrlLoss", "register", "head_of")


@pytest.mark.parametrize(("name", "text"), list(zip(HOSTS, GLUE, strict=True)), ids=HOSTS)
def test_the_lines_for_each_host_run_and_are_few(name, text):
    from transformers import LlamaConfig, LlamaForCausalLM

    lines = [line for line in text.splitlines() if line.strip()]
    assert name in text and len(lines) <= 5
    host = {"SoundrlLoss": "trl", "register": "verl"}.get(name)
    if host and importlib.util.find_spec(host) is None:
        pytest.skip(f"{host} is not installed: make adapters")
    torch.manual_seed(0)
    settings = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = torch.randint(31, (2, 7))
    seen = {"model": LlamaForCausalLM(LlamaConfig(**settings)), "ids": ids, "attention_mask": torch.ones_like(ids)}
    seen |= {"mask": torch.arange(7).expand(2, 7) >= 3, "advantages": torch.tensor([1.0, -1.0]), "old": torch.full((2, 7), -3.0)}
    exec(text, seen)  # noqa: S102
    if name in ("rl_loss", "token_logprobs"):
        assert seen["loss"].isfinite()
    if name == "rl_loss":
        assert all(p.grad is not None for p in seen["model"].parameters())
    if name == "SoundrlLoss":
        assert seen["Trainer"]._compute_loss is seen["SoundrlLoss"]._compute_loss
    if name == "register":
        from verl.trainer.ppo.core_algos import get_policy_loss_fn

        assert get_policy_loss_fn("soundrl")
    if name == "head_of":
        logits = seen["model"](ids).logits[:, :-1]
        wanted = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        torch.testing.assert_close(seen["logprob"], wanted, rtol=1e-5, atol=1e-5)
