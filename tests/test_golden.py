"""Golden losses: two optimizer steps over committed rollouts from committed weights. Nothing is sampled, so that every processor, backend
and number of ranks must agree; `tests/golden/README.md` says how the files are made anew."""

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
NAMES = ("loss/policy", "loss/entropy", "loss/kl", "optim/grad_norm", "reward/mean", "tokens/trained", "norm")
START = str(Path(__file__).parents[1] / "starts" / "policy")
CASES = {
    "fapo": {},
    "grpo": {"lam": 0.0},
    "gspo": {"loss": {"variant": "gspo"}},
    "few": {"prompts": 2},
    "few, sdpa": {"prompts": 2, "attention": "sdpa"},
}
# Measured over ATEN_CPU_CAPABILITY default and avx2, ONEDNN_MAX_CPU_ISA=AVX2, one and two ranks, and interpreted kernels: at most 5e-5
# (gspo's loss, a difference of two sums 100 times as large), else 4e-6. A changed formula moves all of them by per cents.
TOLERANCE = {"rel": 5e-4, "abs": 1e-6}


@pytest.fixture(scope="module")
def computed(torchrun_once) -> dict:
    """One process group computes all cases."""
    cases = [{"folder": START} | case for case in CASES.values()]
    one = dict(zip(CASES, torchrun_once("golden", 1, cases=cases), strict=True))
    two = dict(zip(CASES, torchrun_once("golden", 2, cases=cases[:1]), strict=False))
    return {1: one, 2: two}


def values(said: dict) -> dict[str, float]:
    return {name: said[name] for name in NAMES}


@pytest.mark.parametrize("name", ["fapo", "grpo", "gspo"])
def test_losses_are_those_that_were_committed(computed, name):
    """To renew them after a change that is meant to move numbers, delete the file and run this test: it writes a new one and fails."""
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps({case: values(computed[1][case]) for case in ("fapo", "grpo", "gspo")}, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} did not exist and was written; look at it and commit it")
    golden = json.loads(GOLDEN.read_text())
    assert values(computed[1][name]) == pytest.approx(golden[name], **TOLERANCE)
    # Inverse: the same measure tells another objective, here by per cents.
    others = [golden[other] for other in golden if other != name]
    assert all(abs(other["optim/grad_norm"] / golden[name]["optim/grad_norm"] - 1) > 0.01 for other in others)


def test_two_ranks_train_as_one_does(computed):
    assert values(computed[2]["fapo"]) == pytest.approx(values(computed[1]["fapo"]), **TOLERANCE)


def test_training_is_the_same_whatever_computes_attention(computed, torchrun):
    """Kernels (interpreted, hence few prompts), sdpa, and the default on CPU, the reference, on the same tokens."""
    (interpreted,), few = (
        torchrun("golden", 1, forked=False, cases=[{"folder": START} | CASES["few"]], environment={"TRITON_INTERPRET": "1"}),
        computed[1]["few"],
    )
    assert computed[1]["few, sdpa"]["digest"] == few["digest"]  # the same code on CPU
    assert values(interpreted) == pytest.approx(values(few), **TOLERANCE) and few["optim/grad_norm"] > 0
    assert interpreted["digest"] != few["digest"]  # witness: other arithmetic, so the kernels did run
