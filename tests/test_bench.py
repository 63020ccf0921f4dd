"""The benchmark harness: what is wrong is never timed, what fails is reported, and every script runs at its small shapes."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import QUIET, ROOT

sys.path.insert(0, str(ROOT / "bench"))
from harness import Case, Plan, Provider, Work, arguments, measure, relative_error, run
from record import Row

X = torch.arange(1.0, 7.0).reshape(2, 3)
PLAN = Plan(device="cpu", rounds=3, per_round=2)


def case(*providers: Provider, **changes) -> Case:
    settings: dict = {"mode": "double", "shape": {"n": 6}, "dtype": X.dtype, "tolerance": 1e-6, "moved": 48.0, "flop": 6.0}
    return Case(reference=lambda: {"y": 2 * X.double()}, providers=providers, **settings | changes)


def provider(name: str, step, **settings) -> Provider:
    return Provider(name, lambda: Work(step, **settings))


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.provider: row for row in rows}


def test_right_providers_are_timed_and_wrong_ones_are_not():
    def absent() -> Work:
        raise ImportError("No module named 'elsewhere'")

    def late(_):
        late.calls += 1
        if late.calls > 3:
            raise RuntimeError("out of memory")
        return {"y": 2 * X}

    late.calls = 0
    timed = []
    rows = by_name(
        measure(
            case(
                provider("right", lambda _: {"y": 2 * X}),
                provider("wrong", lambda _: timed.append(1) or {"y": 2.1 * X}),
                provider("nan", lambda _: {"y": 2 * X + torch.tensor([[0.0], [torch.nan]])}),
                provider("other shape", lambda _: {"y": 2 * X.T}),
                provider("less", lambda _: {}),
                Provider("absent", absent),
                provider("late", late),
            ),
            PLAN,
        )
    )
    right = rows["right"]
    assert right.error is None and right.errors == {"y": 0.0} and right.repeats == 6 and right.timing == "perf_counter"
    assert right.ms and right.p20 and right.p80 and right.p20 <= right.ms <= right.p80
    assert right.peak_mib is None  # on CPU nothing rather than something wrong
    assert rows["wrong"].error == "wrong: y is off by 5.00e-02; 1e-06 accepted" and len(timed) == 1
    assert rows["nan"].error == "wrong: y is off by nan; 1e-06 accepted"
    assert rows["other shape"].error and "shape (3, 2), the reference (2, 3)" in rows["other shape"].error
    assert rows["less"].error == "wrong: returned [], the reference has ['y']"
    assert rows["absent"].error == "ImportError: No module named 'elsewhere'"
    assert rows["late"].error == "while timed: RuntimeError: out of memory"
    for name in set(rows) - {"right"}:
        assert rows[name].ms is None and rows[name].repeats == 0, name


def test_providers_take_turns_in_rotating_order():
    order = []
    names = "abc"
    providers = [provider(name, lambda _, name=name: order.append(name) or {"y": 2 * X}) for name in names]
    measure(case(*providers), PLAN)
    checks, rounds = order[:3], [order[3 + 9 * r : 12 + 9 * r : 3] for r in range(3)]  # an untimed run and two timed ones each
    assert "".join(checks) == "abc" and ["".join(r) for r in rounds] == ["abc", "bca", "cab"]
    assert len(order) == 3 + 27


def test_only_the_step_is_timed_and_calls_divide_it():
    made = []
    work = Work(lambda state: made.append(state) or {"y": 2 * X}, before=lambda: "ready", calls=4)
    (row,) = measure(case(Provider("ours", lambda: work)), PLAN)
    assert row.ms is not None and set(made) == {"ready"} and len(made) == 1 + 3 * 3


def test_floors_come_from_the_ceilings_of_the_run(monkeypatch):
    import harness

    milliseconds = {"ours": 4.0, "multiply": 2.0, "copy": 3.0}
    monkeypatch.setattr(harness, "take_turns", lambda ready, *_: {name: [milliseconds[name]] * 3 for name in ready})
    ceilings = [
        Provider("multiply", lambda: Work(lambda _: {}), ceiling=("FLOP", 3.0)),  # 2 ms for 3: 4 ms for the case's 6
        Provider("copy", lambda: Work(lambda _: {}), ceiling=("bytes", 48.0)),
    ]
    rows = by_name(measure(case(provider("ours", lambda _: {"y": 2 * X}), *ceilings), PLAN))
    ours = rows["ours"]
    assert (ours.ms, ours.floor_ms, ours.floor_by, ours.x_floor) == (4.0, 4.0, "multiply", 1.0)
    assert rows["copy"].x_floor is None and rows["copy"].error is None and rows["copy"].errors == {}


def test_an_omitted_result_is_not_asked_for_but_an_extra_one_is_refused():
    half = Provider("half", lambda: Work(lambda _: {"y": 2 * X}), omits=("z",))
    both = case(half, provider("extra", lambda _: {"y": 2 * X, "z": X, "q": X}))
    with_z = Case(**{**vars(both), "reference": lambda: {"y": 2 * X, "z": X}})
    rows = by_name(measure(with_z, PLAN))
    assert rows["half"].error is None
    assert rows["extra"].error == "wrong: returned ['q', 'y', 'z'], the reference has ['y', 'z']"


def test_relative_error():
    assert relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0


def test_rows_are_written_as_json_lines_with_machine_and_commit(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    plan = arguments(None, ["--rounds", "1", "--per-round", "2", "--only", "double", "--skip", "b"])
    assert plan.out == tmp_path / "out" and plan.wants("S1", "double") and not plan.wants("S1")
    both = case(provider("a", lambda _: {"y": 2 * X}), provider("b", lambda _: {"y": 2 * X}))
    run("double", [lambda _: both, lambda _: None], plan)
    (line,) = (tmp_path / "out" / "double.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["provider"] == "a" and row["repeats"] == 2 and row["stamp"]["torch"] == torch.__version__ and row["ms"] > 0
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert row["stamp"]["commit"] == (commit.stdout.strip() if commit.returncode == 0 else "unknown")
    assert "1 rows, 0 with an error" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        arguments(None, ["--rounds", "0"])


SCRIPTS = {  # rows that must be right; rows that must say what is missing
    "linear_logprob": ({"ours", "torch", "liger fused GRPO", "bare products"}, {"quack chunked", "cut-cross-entropy"}),
    "logprob": ({"ours", "torch", "liger GRPO", "liger selective", "ours, in place"}, {"trl fused"}),
    "group_advantage": ({"ours", "torch, loop"}, set()),
    "varlen_attention": ({"ours", "sdpa per sequence"}, {"sdpa padded"}),
}
PLAIN = ("linear_logprob", "varlen_attention")  # interpreted, their small shapes would still take minutes
RESULTS = {"group_advantage": {"advantage"}, "varlen_attention": {"out", "dq", "dk", "dv"}}


OTHERS = {
    "step_host": ("--rollouts", "64", "--tokens", "40", "--rounds", "1"),
    "checkpoint": ("--layers", "1", "--hidden", "64", "--tokens", "64", "--rounds", "1"),
}
IN_TURN = """
import json, runpy, sys
sys.path.insert(0, "bench")
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Command lines of scripts in one process, as importing costs more than running them."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every script at its small shapes, in two processes at once: the row kernels interpreted, ours and Liger's, the others not."""
    out = tmp_path_factory.mktemp("bench")
    lines = {"0": list[list[str]](), "1": list[list[str]]()}
    for script in SCRIPTS:
        line = [f"bench/{script}.py", "--rounds", "1", "--per-round", "1", "--skip", "torch.compile"]
        lines["0" if script in PLAIN else "1"].append(line)
    lines["0"] += [[f"bench/{script}.py", *settings, "--out", str(out / f"{script}.jsonl")] for script, settings in OTHERS.items()]
    running = []
    for interpret, part in lines.items():
        environment = os.environ | QUIET | {"OUT": str(out), "TRITON_INTERPRET": interpret, "PYTHONPATH": os.pathsep.join(sys.path)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        running.append(subprocess.Popen([sys.executable, "-c", IN_TURN, json.dumps(part)], cwd=ROOT, env=environment, **pipes))
    said = [process.communicate(timeout=1200)[0] for process in running]
    assert all(process.returncode == 0 for process in running), said
    return {name: [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()] for name in (*SCRIPTS, *OTHERS)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs_at_small_shapes(written, script):
    right, missing = SCRIPTS[script]
    rows = written[script]
    for row in rows:
        if row["provider"] in right:
            assert row["error"] is None and row["ms"] > 0 and row["stamp"]["small"], row
            assert all(error <= 1e-4 for error in row["errors"].values()), row
        if row["error"]:
            assert row["ms"] is None and re.search("No module named|active drivers|would pad", row["error"]), row
    assert right | missing <= {row["provider"] for row in rows}
    assert all(row["stamp"].get("interpreted", False) == (script not in PLAIN) for row in rows)
    checked = {name for row in rows if row["provider"] == "ours" for name in row["errors"]}
    assert checked >= RESULTS.get(script, {"logprob", "entropy", "loss"})


def test_plots_are_drawn_from_the_rows_alone(written, tmp_path):
    from plot import draw_plots

    source = tmp_path / "linear_logprob.jsonl"
    source.write_text("\n".join(map(json.dumps, written["linear_logprob"])))
    pictures = draw_plots(source, tmp_path)
    assert sorted(p.name for p in pictures) == [f"linear_logprob-{mode}.png" for mode in ("compaction", "cross-entropy", "forward", "grpo")]
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in pictures)


def test_what_a_checkpoint_costs(written):
    (row,) = written["checkpoint"]
    assert row["bytes"] >= 12 * row["parameters"] and row["stamp"]["device"]
    assert 0 < row["blocked_seconds"] < row["written_seconds"] and row["dcp_seconds"] > 0
    assert row["predicted_7b_8_gpus"]["gigabytes_a_rank"] == 11.4


def test_the_host_work_of_a_step_runs_at_small_shapes(written):
    """Each stage checks what it has made; the figures themselves are the machine's."""
    rows = {row["stage"]: row for row in written["step_host"]}
    assert rows.keys() == {"exchange", "deal", "pack", "write", "write, JSON", "in all"}
    assert all(row["seconds"] > 0 and row["stamp"]["device"] and row["rollouts"] == 64 for row in rows.values())
    assert 0 < rows["write"]["disk_mb"] < 0.6 * rows["write, JSON"]["disk_mb"]
