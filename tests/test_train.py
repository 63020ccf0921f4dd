"""The main job end to end, as a user starts it: real vLLM on two gloo ranks, the run folder, λ = 0, a real judge."""

import gzip
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import start
from transformers import AutoModelForCausalLM

from soundrl.engine.environments.arithmetic import calculator
from soundrl.engine.environments.arithmetic.called_chains import KINDS, first_flaw
from soundrl.engine.environments.arithmetic.chains import parse
from soundrl.engine.environments.arithmetic.chains import steps as solution_steps
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.tools.trace import read_trace, steps_of
from soundrl.fapo.figures import figures
from soundrl.fapo.records import Turn
from soundrl.fapo.samples import Samples

NAMES = {  # DESIGN §7
    *("reward/mean", "reward/correct", "fapo/flawed_ratio", "fapo/rho", "fapo/past_shift", "fapo/flawed_advantage", "genrm/unknown"),
    *("mismatch/exp_abs_dlogp", "mismatch/kl", "mismatch/gate", "loss/policy", "loss/clip_low", "loss/clip_high", "loss/entropy"),
    *("optim/grad_norm", "tokens/response", "tokens/fill", "time/step", "time/generate", "time/verify", "time/judge_wait"),
    "time/rank_wait",
    *("time/train", "time/sync", "memory/peak_rss_mib"),
}
START = ("--model.path", "starts/policy", "--warm-start.steps", 0)
TINY = (*START, "--run.steps", 3, "--data.test-rows", 24, "--run.eval-sampling", 1, 1.0, 1.0)


def metrics(folder: Path) -> list[dict]:
    return RunReader(folder).metrics()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run on two ranks, through vLLM, and what was said."""
    folder = tmp_path_factory.mktemp("two")
    half = ("--rollout.prompts", 16, "--optim.minibatch-prompts", 16)
    arguments = ("arith", *TINY, *half, "--run.folder", folder, "--run.save", 2, 9, 0, "--rollout.memory", 0.06)
    done = start([sys.executable, "engine/train.py", *map(str, arguments)], NPROC="2", MALLOC_MMAP_THRESHOLD_="1000000")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "arith", done.stdout


def test_two_ranks_through_vllm_leave_a_whole_run_folder(two_ranks):
    folder, text = two_ranks
    assert RunReader(folder).config["fapo"]["lam"] == 1.0
    steps = [row for row in metrics(folder) if "loss/policy" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert steps[0].keys() >= NAMES, NAMES - steps[0].keys()
    assert all(1.0 <= row["mismatch/gate"] <= 1.05 and row["mismatch/exp_abs_dlogp"] <= 1.05 for row in steps)
    trace = steps_of(read_trace(folder / "trace.json"))
    assert [row["seconds"] for row in trace] == pytest.approx([row["time/step"] for row in steps], rel=0.2)
    assert {event["pid"] for event in read_trace(folder / "trace.json")} == {0, 1}
    rollouts = RunReader(folder).rollouts(1)
    assert len(rollouts) == 16 * 8 and len({(r["prompt_id"], r["sample"]) for r in rollouts}) == 128
    assert {r["policy_version"] for r in rollouts} == {1}
    assert all((r["verdict"] is not None) == (r["outcome"] == "correct") for r in rollouts)
    assert all(len(r["tokens"]) == len(r["logprobs"]) for r in rollouts)
    assert all((r["window"] is not None) == (r["advantage"] != 0.0) for r in rollouts) and {r["window"] for r in rollouts} == {0, None}
    spans = [(event["ts"] / 1e6, event["dur"] / 1e6) for event in read_trace(folder / "trace.json") if event.get("name") == "generate"]
    begin, end = spans[0][0], max(start + seconds for start, seconds in spans)
    assert all(begin < r["times"]["sampled"] <= r["times"]["verified"] < end + 60 for r in rollouts)
    assert {(r["times"]["asked"], r["times"]["answered"]) for r in rollouts} == {(None, None)}  # the oracle is not asked
    by_trainer = {(r["prompt_id"], r["sample"]): r for r in RunReader(folder).trained(1).to_pylist()}
    assert by_trainer.keys() == {(r["prompt_id"], r["sample"]) for r in rollouts if r["window"] is not None}
    assert sorted(file.name for file in (folder / "rollouts" / "step-000001").glob("trained-*")) == ["trained-0.arrows", "trained-1.arrows"]
    ratios, entropy = [], []
    for r in (r for r in rollouts if r["window"] is not None):
        found = by_trainer[r["prompt_id"], r["sample"]]
        ratios += np.exp(np.abs(np.subtract(found["logprobs"], r["logprobs"]))).tolist()
        entropy += found["entropy"]
    assert np.mean(ratios) == pytest.approx(steps[0]["mismatch/exp_abs_dlogp"], rel=1e-5) and len(ratios) == steps[0]["tokens/trained"]
    assert np.mean(entropy) == pytest.approx(steps[0]["loss/entropy"], rel=1e-3)
    judged = [r for r in rollouts + RunReader(folder).rollouts(3, "eval") if r["verdict"]]
    assert len(judged) > 16 and all(r["paragraphs"] == list(solution_steps(r["text"])) for r in judged)
    flawed = [r for r in judged if r["verdict"]["kind"] == "flawed"]
    assert flawed and all(r["verdict"]["step"] < len(r["paragraphs"]) for r in flawed)
    assert {r["paragraphs"] is None for r in rollouts if r["verdict"] is None} == {True}
    evaluated = RunReader(folder).rollouts(3, "eval")
    assert RunReader(folder).steps("eval") == [0, 3] and {row["set"] for row in evaluated} == {"arith-test", "arith-test-p2"}
    assert len({(row["prompt_id"], row["sample"]) for row in evaluated}) == len(evaluated) == 48
    assert {row["advantage"] for row in evaluated} == {None}  # its groups are parts, on either rank
    right = [row["outcome"] == "correct" for row in evaluated if row["set"] == "arith-test"]
    last = {name: value for name, value in metrics(folder)[-1].items() if name.startswith("eval/arith-test/")}
    assert sum(right) / len(right) == last["eval/arith-test/accuracy"]
    found = figures(Samples.read(RunReader(folder).table(3, "eval", "arith-test")))  # from the file to the last bit
    for name in ("accuracy", "sound"):
        said = [last[f"eval/arith-test/{name}{end}"] for end in ("", "_low", "_high")]
        assert said == [*found[name]][:3] and said[1] < said[0] < said[2]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    assert [p.name for p in (folder / "policy").iterdir()] == ["step-000003"]
    model = AutoModelForCausalLM.from_pretrained(folder / "policy" / "step-000003")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for words in ("step    3/3", "ETA 0:00", "right final answers", "reached by flawed steps", "before", "after", "seconds in all"):
        assert words in text, text[-3000:]


def test_a_warm_start_alone_starts_no_sampler(forked_train, tmp_path):
    alone = ("--warm-start.steps", 2, "--run.steps", 0, "--data.test", "--genrm.judge", "none", "--fapo.lam", 0)
    statuses, said = forked_train("arith", *alone, "--run.folder", tmp_path)
    assert statuses == [0] and "seconds in all: " in said, said[-6000:]
    assert "sampler" not in said and (tmp_path / "arith" / "policy" / "step-000000" / "model.safetensors").exists()


def digest(folder: Path, step: int) -> str:
    return hashlib.sha256((folder / "policy" / f"step-{step:06d}" / "model.safetensors").read_bytes()).hexdigest()


def tiny_arguments(folder: Path, name: str, *arguments) -> list[str]:
    """The command line of a small run without vLLM."""
    small = ("--rollout.engine", "torch", "--rollout.prompts", 8, "--optim.minibatch-prompts", 8, "--data.test")
    return [str(part) for part in ("arith", *TINY, *small, "--run.folder", folder, "--run.name", name, *arguments)]


def steps_in(folder: Path) -> list[dict]:
    return [row for row in metrics(folder) if "loss/policy" in row]


@pytest.fixture(scope="module")
def tiny_runs(torchrun_once, tmp_path_factory, two_ranks) -> tuple[Path, list]:
    """Small runs one after the other in one process, which costs more to start than they do; and replays of their steps."""
    folder = tmp_path_factory.mktemp("tiny")
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedJudge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    halves = ("--optim.minibatch-prompts", 4, "--run.save", 1, 9, 0)
    asked = ("--genrm.judge", "endpoint", "--genrm.urls", f"http://127.0.0.1:{server.server_port}/v1", "--genrm.model", "judge")
    runs = [
        tiny_arguments(folder, "judged", "--fapo.lam", 0, "--run.steps", 2, *halves),
        tiny_arguments(folder, "plain", "--fapo.lam", 0, "--genrm.judge", "none", "--run.steps", 2, *halves),
        tiny_arguments(folder, "profiled", "--fapo.lam", 0, "--genrm.judge", "none", "--run.steps", 2, *halves, "--profile", 2),
        tiny_arguments(folder, "fapo", "--run.steps", 2, *halves[:2]),
        with_tools(folder),
        tiny_arguments(folder, "judge", *asked, "--run.steps", 1),
    ]
    steps = [("judged", 2, 1.0), ("fapo", 1, None), ("fapo", 2, None), ("tools", 1, None), ("judge", 1, None)]
    try:
        replays = [*((str(folder / name), step, lam) for name, step, lam in steps), (str(two_ranks[0]), 3, None)]
        said = torchrun_once("runs", 1, runs=runs, replays=replays)
    finally:
        server.shutdown()
    assert said[: len(runs)] == [None] * len(runs)
    return folder, said[len(runs) :]


def test_lambda_zero_is_grpo_bit_for_bit(tiny_runs):
    """With an oracle that finds flaws everywhere and λ = 0, or with no judge at all: the same losses and the same parameters."""
    folder, _ = tiny_runs
    judged, plain = (steps_in(folder / name) for name in ("judged", "plain"))
    names = ("loss/policy", "optim/grad_norm", "reward/mean", "loss/entropy")
    assert [[row[n] for n in names] for row in judged] == [[row[n] for n in names] for row in plain]
    assert digest(folder / "judged", 2) == digest(folder / "plain", 2)
    # Witness and inverse: flaws were found, and λ = 1 does train something else.
    assert all(row["fapo/flawed_ratio"] > 0 for row in judged)
    assert digest(folder / "fapo", 2) != digest(folder / "plain", 2)
    # Two optimizer steps: each rollout says in which window of which it trained, with λ = 0 before its verdict was needed.
    for name, further in (("judged", 0), ("fapo", 1)):
        rows = RunReader(folder / name).rollouts(1)
        windows = {row["window"] for row in rows} - {None}
        assert {0, 10_000} <= windows <= {0, further, 10_000, 10_000 + further}
        assert all((row["window"] is None) == (row["advantage"] == 0.0) for row in rows)


def test_a_profile_changes_no_bit(tiny_runs):
    folder, _ = tiny_runs
    plain, profiled = (RunReader(folder / name).metrics() for name in ("plain", "profiled"))
    of_time = ("time/", "memory/", "speed/")
    assert [[{k: v for k, v in row.items() if not k.startswith(of_time)} for row in rows] for rows in (plain, profiled)] == 2 * [
        [{k: v for k, v in row.items() if not k.startswith(of_time)} for row in plain]
    ]
    assert digest(folder / "profiled", 2) == digest(folder / "plain", 2)
    (trace,) = (folder / "profiled" / "profile").iterdir()
    assert trace.name == "step-000002-rank-0.json.gz" and "time/profile" in profiled[-1]
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"aten::mm", "aten::embedding"} <= names and not (folder / "plain" / "profile").exists()


def test_what_is_held_is_what_was_planned(two_ranks):
    """Each phase of a real run on CPU; what its heap would keep of freed memory goes back (`MALLOC_MMAP_THRESHOLD_`)."""
    folder, text = two_ranks
    rows = [row for row in metrics(folder) if "loss/policy" in row]
    for phase in ("sampling", "training", "syncing", "gate"):
        planned, held = rows[-1][f"memory/{phase}_planned_mib"], max(row[f"memory/{phase}_mib"] for row in rows)
        assert held == pytest.approx(planned, rel=0.15), phase
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["training_mib"] == pytest.approx(rows[-1]["memory/training_planned_mib"], abs=0.1)
    assert "peak memory" in text and "the gate compares" in text and "planned" in text
    assert all(row["time/train_max"] >= row["time/train"] > 0 and row["speed/tokens"] > 0 for row in rows)
    assert "speed/mfu" not in rows[0]  # a CPU's peak is not known


def test_saved_steps_are_replayed_to_the_bit(tiny_runs):
    """On the run's own number of ranks a saved step is the same to the bit, loss and gradient norm too: from a checkpoint, in its second
    mini-batch, from the folder that the run started from, from the export of a warm start, with tokens of an environment, with verdicts
    that were unknown."""
    judged, first, second, tools, asked, whole = tiny_runs[1]
    for said in (judged, first, tools, asked):
        assert said["differs"] == [] == said["left_out"] and len(said["equal"]) == 6
        assert all(line.endswith("bit for bit") for line in said["equal"])
        assert said["equal"][-1].startswith("loss/policy ") and "optim/grad_norm " in said["equal"][-1]
    assert judged["equal"][-2].startswith("2 mini-batches, 2 windows, ") and "2 mini-batches" in first["equal"][-2]
    # Its weights are those of no checkpoint: the rest is replayed.
    assert len(second["equal"]) == 5 and second["left_out"] == [
        "loss and gradient: no checkpoint of step 1 is there; steps that can be: 1; keep every one by --run.save 1 2 0"
    ]
    # Of two ranks, on one, from the checkpoint of both: sums in another order.
    assert whole["differs"] == [] == whole["left_out"] and all(line.endswith("bit for bit") for line in whole["equal"][:5])
    assert whole["equal"][5].startswith("loss/policy ") and whole["equal"][5].endswith("(2 ranks of the run, one here; allowed 0.0005)")
    # GRPO's step with λ = 1 is another: flawed rollouts lose, and the gradient turns.
    (gradient,) = [line.split() for line in judged["otherwise"] if line.startswith("  gradient")]
    assert 0 < float(gradient[2].rstrip(",")) < 0.9999 and gradient[-1] == "(step-000001)"


def with_tools(folder: Path) -> list[str]:
    """A step of `arith-tools` after a warm start that is just long enough for calls; beside the others, as a process costs more."""
    warm = ("--warm-start.steps", 50, "--warm-start.batch", 16, "--run.steps", 1)
    small = ("--rollout.engine", "torch", "--rollout.prompts", 8, "--optim.minibatch-prompts", 8, "--data.test")
    return [str(part) for part in ("arith-tools", *warm, *small, "--run.folder", folder, "--run.name", "tools")]


def test_calls_and_replies_stand_on_disk_and_in_figures(tiny_runs):
    """What the calculator says, tokens of its own without loss, verdicts over turns."""
    folder = tiny_runs[0] / "tools"
    rows, (row,) = RunReader(folder).rollouts(1), steps_in(folder)
    of_turns = [r for r in rows if r["turns"]]
    assert len(rows) == 64 and len(of_turns) > 16  # witness: it does call
    for r in of_turns:
        for call, said in zip(r["turns"][::2], r["turns"][1::2], strict=False):
            reply = calculator.reply(call["text"])
            assert reply is not None and call["own"] and not said["own"]
            assert (said["text"], said["tool"], said["failed"]) == (reply.text, "calculator", reply.failed)
        assert r["text"] == calculator.transcript(Turn(**turn) for turn in r["turns"])
        replied = sum(len(turn["text"]) for turn in r["turns"] if not turn["own"])  # a token a character
        assert r["mask"].count(0) == replied and all(logprob == 0 for logprob, own in zip(r["logprobs"], r["mask"], strict=True) if not own)
    for r in rows:
        flaw = first_flaw(parse(r["prompt"]), r["text"])
        assert r["outcome"] != "correct" or (r["verdict"]["step"], r["verdict"]["reason"]) == (flaw or (None, ""))
    assert row["turns/mean"] == 1 + sum(len(r["turns"] or ()) // 2 for r in rows) / 64 and row["tokens/tool"] > 0
    assert row["fapo/tool_misuse"] == sum(row[f"fapo/kind_{kind}"] for kind in KINDS if kind.startswith("tool_"))


class ScriptedJudge(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that calls every solution flawed in its first paragraph, and leaves one in four unanswered."""

    seen: list[str] = []

    def reply(self, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "judge", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(request["messages"][0]["content"])
        text = "no verdict" if len(self.seen) % 4 == 0 else "The first step is wrong. \\boxed{0}"
        self.reply(
            {
                "id": "x",
                "object": "chat.completion",
                "model": "judge",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            }
        )

    def log_message(self, *_: object) -> None:
        pass


def test_a_judge_behind_a_url_reaches_rewards_and_counts(tiny_runs):
    folder = tiny_runs[0] / "judge"
    (row,) = steps_in(folder)
    rollouts = RunReader(folder).rollouts(1)
    verdicts = [r["verdict"] for r in rollouts if r["outcome"] == "correct"]
    assert len(verdicts) >= 8 and ScriptedJudge.seen  # witness: there was something to judge, and it went over the wire
    assert "<paragraph_0>" in ScriptedJudge.seen[-1]  # the first one is the check before training
    unknown = [v for v in verdicts if v["kind"] == "unknown"]
    assert unknown and all(v["reason"] == "no_box" for v in unknown)
    asked = [e for e in read_trace(folder / "trace.json") if e["ph"] == "b"]
    assert len(asked) == len(verdicts) and 0 <= row["genrm/overlap"] <= 1
    own = [r for r in rollouts if r["judge_seconds"]]
    assert own and all(r["times"]["verified"] <= r["times"]["asked"] < r["times"]["answered"] for r in own)
    assert all(f"<paragraph_{len(r['paragraphs']) - 1}>" in "".join(ScriptedJudge.seen) for r in own)
    assert row["genrm/unknown_no_box"] >= len(unknown) and row["genrm/latency_p99"] > 0
    assert row["genrm/unknown"] == pytest.approx(len(unknown) / len(verdicts))
    assert all(v["kind"] in ("flawed", "unknown") for v in verdicts)
    for r in rollouts:
        kind = r["verdict"] and r["verdict"]["kind"]
        assert r["kept"] == (kind != "unknown") and (r["advantage"] == 0.0 or r["kept"])
        assert r["reward"] == {"flawed": 0.0, "unknown": 1.0, None: -1.0}[kind]
