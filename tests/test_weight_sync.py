"""The weight sync against real vLLM: healthy syncs pass, each seeded fault is caught and named."""

import math
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import evaluations
import numpy as np
import pytest
import torch

from soundrl.engine import weight_sync
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.files.underway import BATCH
from soundrl.engine.tools import sync_doctor
from soundrl.engine.weight_sync import GateResult, SyncError, WeightSync
from soundrl.fapo.records import Rollout


def gap(message: str) -> float:
    found = re.search(r"log-prob\| is ([\d.]+|inf) over 2048 tokens", message)
    assert found, message
    return float(found[1])


class Sampler:
    """Says −1 for every token, but for those of `odd`, by their place among all tokens of a gate."""

    def __init__(self, odd: dict[int, float], engine: int = 0) -> None:
        self.odd, self.engine, self.version, self.requests, self.routes, self.adapts = odd, engine, 0, [], None, False

    def generate(self, requests):
        self.requests.append(requests)
        place = 0
        for r in requests:
            values = tuple(self.odd.get(place + i, -1.0) for i in range(r.max_new_tokens))
            place += r.max_new_tokens
            yield Rollout(
                prompt_id=r.prompt_id, sample=0, prompt_tokens=r.prompt_tokens, tokens=(1,) * r.max_new_tokens, logprobs=values, text="",
                finish_reason="length", policy_version=0,
            )  # fmt: skip

    def load(self, tensors):
        list(tensors)

    def wake(self, part): ...

    def reset_cache(self): ...


def gated(sampler: Sampler, trainer_says: float = -1.0, others: float = 0.0) -> dict[str, float]:
    """A sync with `sampler`; `others`: what the worst other engine has found."""
    mesh = SimpleNamespace(ndim=1, size=lambda dim: 2)
    ranks = SimpleNamespace(device=torch.device("cpu"), max=lambda value: max(value, others), mesh=mesh)
    policy = SimpleNamespace(
        ranks=ranks,
        routers=None,
        settings=SimpleNamespace(max_length=64, dtype="bfloat16"),
        model=torch.nn.Linear(2**10, 2**9, bias=False, device="meta"),
        named_full_tensors=lambda: iter([("w", torch.zeros(2))]),
        response_logprobs=lambda batch, temperature: (torch.full((len(batch.response_index),), trainer_says), None),
    )
    trainer = SimpleNamespace(settings=SimpleNamespace(microbatch_tokens=1024), sleep=lambda: None)
    return WeightSync(policy, trainer, sampler, [(1, 2, 3)] * 8, 1.2, 1.05)()  # type: ignore[arg-type]


@pytest.fixture
def doctor(monkeypatch):
    def diagnose(sync, result):
        return f"diagnosed {result.exp_abs_dlogp:.3f} over {result.tokens}, {result.not_finite} without"

    monkeypatch.setattr(sync_doctor, "diagnose", diagnose)


def test_one_odd_token_is_measured_again_before_the_run_stops(doctor, monkeypatch):
    odd = {17: -1.0 - math.log(20.0)}
    metrics = gated(sampler := Sampler(odd))
    assert [len(requests) for requests in sampler.requests] == [8, 64]  # 256 tokens, then 2,048
    assert metrics["mismatch/gate_tokens"] == 2048 and metrics["mismatch/gate"] == pytest.approx(1 + 19 / 2048, rel=1e-5)
    monkeypatch.setattr(weight_sync, "AGAIN", 256)  # witness: on the first tokens alone the run would stop
    with pytest.raises(SyncError, match="diagnosed 1.074 over 256"):
        gated(Sampler(odd))
    healthy = gated(sampler := Sampler({}))
    assert len(sampler.requests) == 1 and healthy["mismatch/gate"] == 1.0
    assert healthy["sync/gathered_mib"] == 1.5  # a bucket of 2¹⁹ bf16 and this rank's half of it


def test_a_gap_that_stays_stops_the_run(doctor):
    with pytest.raises(SyncError, match="diagnosed 1.105 over 2048"):
        gated(Sampler({}), trainer_says=-1.1)
    with pytest.raises(SyncError, match="diagnosed inf over 2048"):
        gated(Sampler({}), trainer_says=math.nan)


def test_broken_weights_are_never_called_repaired_as_other_tokens_are_sampled():
    """Broken weights are 0.3 off, but for one token in two hundred: by 9.3, which alone makes up mean exp|Δ|."""

    def measured(scale: float, tokens: int, far: float = 0.0) -> GateResult:
        gap = np.where(rng.random(tokens) < 0.005, far, rng.exponential(scale, tokens))
        return GateResult(np.exp(gap).mean(), 1.0, tokens, abs_dlogp=gap.mean())

    rng, called_repaired = np.random.default_rng(0), 0
    for _ in range(300):
        failed = measured(0.3, 2048, 9.3)
        again = measured(0.3, 256, 9.3)
        assert not sync_doctor.closed(again, failed, 1.005)
        called_repaired += again.exp_abs_dlogp <= failed.exp_abs_dlogp**0.25
        assert sync_doctor.closed(measured(1e-6, 256), failed, 1.005) and sync_doctor.closed(measured(0.03, 256), failed, 1.005)
        assert not sync_doctor.closed(replace(measured(0.03, 256), not_finite=128), failed, 1.005)
    assert called_repaired > 10  # witness: the other mean takes one for the other


def test_a_trainer_that_is_not_finite_is_named_and_nothing_is_sent_again():
    with pytest.raises(SyncError, match="trainer's own log-probabilities are not finite"):
        gated(Sampler({}), trainer_says=math.nan)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.5])
def test_tokens_without_a_log_probability_are_left_out_unless_they_are_many(value, doctor):
    assert gated(Sampler(dict.fromkeys(range(5), value)))["mismatch/gate"] == 1.0
    for count, total in ((26, 256), (256, 2048), (2048, 2048)):
        with pytest.raises(SyncError, match=f"over {total}, {count} without"):
            gated(Sampler(dict.fromkeys(range(count), value)))


def test_each_engine_has_probes_of_its_own_and_the_worst_decides_for_all(doctor):
    seeds = []
    for engine in (0, 1):
        gated(sampler := Sampler({}, engine))
        seeds.append([request.seed for request in sampler.requests[0]])
    assert not set(seeds[0]) & set(seeds[1]) and len(set(seeds[0])) == 8
    with pytest.raises(SyncError, match="diagnosed 1.300"):
        gated(Sampler({}), others=1.3)


@pytest.fixture(scope="module")
def engine(torchrun_once, tmp_path_factory):
    """What a worker with a real vLLM engine says, and its folder."""
    folder = tmp_path_factory.mktemp("engine")
    return torchrun_once("sync_faults", 1, folder=str(folder / "tiny")), folder


def test_every_seeded_fault_is_caught_and_named(engine):
    said, _ = engine
    # Inverse: the same steps without a fault pass, before and after each one.
    for healthy in ("start", "processed_logprobs", "healthy", "after_never_sent", "recovered"):
        assert said[healthy].startswith("passed 1.00"), (healthy, said[healthy])
    faults = {
        "raw_logprobs": r"it must be started with logprobs_mode='processed_logprobs'",
        "never_sent": r"1 of \d+ tensors were never sent; the first is model\.layers\.1\.self_attn\.v_proj\.weight",
        "not_taken": r"Sending model\.layers\.1\.mlp again closed the gap: .* first tensor is model\.layers\.1\.mlp\.gate_proj\.weight",
        "old_tied_head": r"ties lm_head to the embedding: the sampler keeps an old copy of lm_head\.weight",
        "stale_prefix_cache": r"After a reset of the prefix cache the two agree",
    }
    for fault, expected in faults.items():
        assert gap(said[fault]) > 1.05, (fault, said[fault])
        assert re.search(expected, said[fault]), (fault, said[fault])
    # The memory of the tensor that was not sent held NaN, which stayed in the KV cache, and would have been read after a whole sync.
    assert said["nan_left"] > 0 and said["nan_kept"] and "no log-probability" in said["never_sent"]

    # Rollouts of this engine depend on their own seed alone, and say how they ended.
    rollouts = said["rollouts"]
    assert rollouts["together"] == rollouts["reversed"] == rollouts["alone"]
    assert len({tuple(row[2]) for row in rollouts["together"]}) == 6  # witness: six different samples
    for _, _, tokens, finish_reason, version, logprobs in rollouts["together"]:
        assert len(tokens) == logprobs and version == rollouts["version"]
        assert (finish_reason == "stop") == (tokens[-1] in rollouts["end"])
        assert finish_reason == "stop" or len(tokens) == 24

    # Over turns it computes what the trainer computes of the whole sequence, whoever replies when; where something else is sent back than
    # was sampled, both see it, and the gate of a run of single turns cannot.
    turns = said["turns"]
    assert turns["late"] == turns["tokens"] and sum(count > 1 for count in turns["turns"]) >= 6 and max(turns["turns"]) >= 3
    assert turns["gap"] < 1e-3 and turns["gate"] < 1.001 and turns["one_turn"] < 1.001
    assert turns["other_gap"] > 0.1 and turns["other_gate"] > 1.05 and turns["unseen"] < 1.001


def test_an_evaluation_that_was_killed_goes_on_to_the_same_bits(engine):
    """In the same process, as its engine is started already (`workers/evaluations`)."""
    said, folder = engine
    whole, killed, gone_on = (said["evaluations"][name] for name in ("whole", "killed", "gone on"))
    assert killed["status"] == -signal.SIGKILL and killed["files"] == ["underway/arith-test/step-000000/1-rank-0.arrows"]  # the witness
    kept = evaluations.KILLED_AFTER // BATCH * BATCH
    first = {tuple(request) for request in whole["asked"]} - {tuple(request) for request in gone_on["asked"]}
    assert whole["status"] == gone_on["status"] == 0 and len(first) == kept > 0  # what was kept is not sampled again
    assert len(whole["asked"]) == 2 * evaluations.ROWS * evaluations.SAMPLES == kept + len(gone_on["asked"])
    assert gone_on["files"] == whole["files"] == [f"rollouts/step-000000/rank-0.eval-arith-test{end}.arrows" for end in ("-p2", "")]
    for name in (*whole["files"], "scores.json", "metrics.jsonl"):
        assert (folder / "again" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    rollouts = RunReader(folder / "again").rollouts(0, "eval", "arith-test")
    assert len({tuple(row["tokens"]) for row in rollouts}) > 8  # witness: of different samples


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            [
                "model.embed_tokens.weight",
                "model.layers.0.self_attn.q_proj.weight",
                "model.layers.0.self_attn.o_proj.weight",
                "model.norm.weight",
            ],
            ["model.embed_tokens", "model.layers.0.self_attn", "model.norm"],
        ),
        (["model.decoder.layers.11.fc1.bias", "lm_head.weight"], ["model.decoder.layers.11.fc1", "lm_head"]),
        (
            [f"model.layers.1.mlp.{name}.weight" for name in ("gate", "experts.0.up_proj", "experts.1.up_proj", "shared_expert.up_proj")]
            + ["model.layers.0.mlp.up_proj.weight"],
            ["model.layers.1.mlp.gate", "model.layers.1.mlp.experts", "model.layers.1.mlp.shared_expert", "model.layers.0.mlp"],
        ),
    ],
)
def test_blocks(names, expected):
    from soundrl.engine.tools.sync_doctor import blocks

    assert [block for block, _ in blocks(names)] == expected
    assert sorted(m for _, members in blocks(names) for m in members) == sorted(names)
