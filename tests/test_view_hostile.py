"""Folders that somebody has damaged, or means ill with: each page says in a line what is not there, and shows the rest."""

import json
import os

import numpy as np
import pytest
from view_runs import event, group_of, metrics, write_run, write_step

from soundrl.view.api import answer
from soundrl.view.plain import NotThere, encoded, key_of
from soundrl.view.runs import Runs

PAGES = "run series judge step-000002/train step-000002/train/group-0 step-000002/train/rollout-0-1 step-000002/train/tokens-0-1".split()


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs" / "one")


def get(run, name, **asked):
    return json.loads(encoded(answer(Runs(run.parent), f"one/{name}.json", asked)))


def listed(run):
    return json.loads(encoded(answer(Runs(run.parent), "runs.json", {})))["runs"][0]


def every_page(run):
    return {name: get(run, name) for name in PAGES}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no JSON"), (b"{", "holds no JSON"), (b"[1]", "no JSON object"), (b"\xff\xfe{}", "holds no JSON"),
        (b"null", "no JSON object"),
        (b"[" * 200_000, "nested too deep"), (b" " * (5 << 20), "which no run writes"), (b"{}", "is empty"),
    ],
    ids=["empty", "cut", "a list", "no text", "null", "deep", "large", "nothing in it"],
)  # fmt: skip
def test_a_configuration_that_is_none(run, content, why):
    (run / "config.json").write_bytes(content)
    row = listed(run)
    assert row["state"] == "broken" and why in row["fault"] and row["figures"]["right"] == 0.5  # what is there is there
    pages = every_page(run)
    assert pages["run"]["config"] == {} and pages["step-000002/train"]["groups"][0]["cells"] == "sfwn"


def test_a_configuration_of_odd_types(run):
    odd: dict[str, object] = {"run": {"steps": "many", "gate": [], "task": {}}, "fapo": {"lam": float("nan")}, "data": {"train": [[]]}}
    odd |= {"genrm": {"unknown": {}, "probe": 3}, "rollout": [], "model": {"path": 7}, "\ud800": "\ud800"}
    (run / "config.json").write_text(json.dumps(odd))
    assert listed(run)["steps"] is None and listed(run)["figures"]["tokens_per_second"] is None
    assert every_page(run)["step-000002/train"]["lam"] == 1.0
    (run / "config.json").write_text('{"a": ' * 900 + "1" + "}" * 900)  # as deep as it can be read, and not be written
    assert get(run, "run")["fault"] == "config.json is nested too deep; restore it"
    (run / "plan.json").write_text('{"a": ' * 900 + "1" + "}" * 900)
    assert get(run, "run")["memory"]["planned"] is None
    (run / "plan.json").write_text('{"weights": 1.5}')
    assert get(run, "run")["memory"]["planned"] == {"weights": 1.5}


def test_metrics_with_broken_lines(run):
    lines = (run / "metrics.jsonl").read_text()
    broken = [
        "{",
        "[]",
        "null",
        '{"step": "x"}',
        '{"step": true}',
        "[" * 50_000,
        '{"no": 1}',
        "\x00\x00",
        '{"step": 9, "reward/correct": "high"}',
    ]
    (run / "metrics.jsonl").write_text(
        "\n".join(broken) + "\n" + lines + '{"step": 4, "reward/correct": NaN, "time/step": 1e999, "x": ' + "9" * 400 + "}\n"
    )
    page = get(run, "series")
    assert (
        page["steps"] == [9, 1, 2, 3, 4]
        and page["series"]["reward/correct"] == [None, 0.5, 0.5, 0.5, None]
        and page["series"]["time/step"][-1] is None
    )
    assert page["series"]["x"][-1] is None
    assert get(run, "run")["faults"] == ["metrics.jsonl: 8 lines hold no JSON object with a step; they are left out"]
    assert listed(run)["step"] == 4
    (run / "metrics.jsonl").write_bytes(b"\xff" * 1000 + b"\n" + json.dumps(metrics(1)).encode() + b"\n")
    assert get(run, "series")["steps"] == [1]


def test_a_line_without_end(run):
    (run / "metrics.jsonl").write_bytes(b"x" * (21 << 20))
    row = listed(run)
    assert row["state"] == "broken" and "16 MiB" in row["fault"]


@pytest.mark.parametrize("cut", [0, 7, 500, 2500, 4000, -1])
def test_a_file_that_is_cut_off(run, cut):
    file = run / "rollouts" / "step-000002" / "rank-0.arrows"
    file.write_bytes(file.read_bytes()[:cut])
    page = get(run, "step-000002/train")
    assert page["groups"][-1]["cells"] == "wwww" and page["faults"], page["faults"]  # the other rank's
    assert all(len(fault) < 400 and "\n" not in fault for fault in page["faults"])


def test_bytes_that_have_turned(run):
    """At a hundred places: a page with a line of it, or the page as it was; never an error of the inspector's own."""
    file = run / "rollouts" / "step-000002" / "rank-0.arrows"
    whole, rng, seen = file.read_bytes(), np.random.default_rng(0), set()
    for _ in range(100):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 8):
            damaged[at] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        runs = Runs(run.parent)
        page = answer(runs, "one/step-000002/train.json", {})
        seen.add(bool(page["faults"]))
        encoded(page)
        for group in page["groups"][:2]:
            for name in (f"group-{group['g']}", f"rollout-{group['g']}-0", f"tokens-{group['g']}-0"):
                try:
                    encoded(answer(runs, f"one/step-000002/train/{name}.json", {}))
                except ValueError as error:  # one line
                    assert len(str(error)) < 500
    assert True in seen  # witness


def test_files_that_are_no_rollouts(run):
    folder = run / "rollouts" / "step-000002"
    (folder / "rank-1.arrows").unlink()
    assert "rank 1 are missing" in " ".join(get(run, "step-000002/train")["faults"])
    for name in ("rank-0.evil-x.arrows", "rank-99999999999.arrows", "rank-x.arrows", "rank-0.eval-..%2F..%2Fx.arrows", "trained-x.arrows"):
        (folder / name).write_bytes(b"no stream")
    (run / "rollouts" / "step-99999999999999").mkdir()
    (run / "rollouts" / "step-000007").write_text("a file")
    (run / "rollouts" / "step-000008").mkdir()
    assert get(run, "step-000002/train")["groups"] and get(run, "run")["steps"]["train"] == [1, 2, 3]
    assert get(run, "step-000002/eval")["groups"] == [] and "rank-0.eval" in get(run, "step-000002/eval")["faults"][0]
    with pytest.raises(NotThere):
        get(run, "step-000008/train")


TEXTS = {
    "2 MB": "x" * 2_000_000,
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "ansi": "\x1b[31mred\x1b]8;;http://evil\x07",
    "bidi": "\u202eright to left\u2066\u200f",
    "NUL": "a\x00b\x00",
    "latex": "\\def\\a{\\a\\a}\\a" * 1000,
    "deep JSON": '{"a":' * 50_000,
    "lines": "\n" * 100_000,
    "surrogates": "\U0001f600" * 10,
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_mean_ill_are_texts(run, name):
    write_step(run, 2, [[group_of("p:0", "sfwn", text=TEXTS[name])]])
    pages = every_page(run)
    group, rollout = pages["step-000002/train/group-0"]["rollouts"][0], pages["step-000002/train/rollout-0-1"]
    assert group["text"] == TEXTS[name][:4000] and group["whole"] == (len(TEXTS[name]) <= 4000)
    assert rollout["text"] == TEXTS[name][:200_000] and rollout["left"] == max(len(TEXTS[name]) - 200_000, 0)
    assert len(encoded(pages["step-000002/train/group-0"])) < 300_000
    assert len(encoded(rollout)) < 3_000_000
    found = get(run, "find", q=TEXTS[name][:3], steps="2") if TEXTS[name].strip() else {"hits": [1]}
    assert found["hits"]


def test_labels_and_disagreements_that_are_none(run):
    (run / "labels.jsonl").write_text('{"id": 3}\n{\n[]\n{"id": "2/p:0/1", "label": "x"}\n{"id": "2/p:0/0", "label": -1}\n')
    (run / "disagreements.jsonl").write_text('{"step": 1}\n{"step": 1, "first": [], "second": 2}\n' + "[" * 10_000 + "\n")
    assert get(run, "step-000002/train/rollout-0-0")["label"] == -1 and get(run, "step-000002/train/rollout-0-1")["label"] is None
    assert get(run, "judge")["faults"] == ["disagreements.jsonl: 3 lines are none of a second opinion; they are left out"]


def test_files_that_cannot_be_read_leave_the_pages(run):
    for name in ("disagreements.jsonl", "alarms.jsonl", "labels.jsonl", "metrics.jsonl"):
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()
    pages = every_page(run)
    assert pages["step-000002/train"]["groups"][0]["cells"] == "sfwn" and pages["judge"]["confusion"]["by"] == "oracle"
    assert [fault.partition(":")[0] for fault in pages["judge"]["faults"]] == ["metrics.jsonl", "disagreements.jsonl"]
    assert pages["run"]["state"] == "broken" and pages["series"]["steps"] == []


def test_a_trace_that_is_none(run):
    lines = [
        '{"name": "step", "ph": "X"',
        '{"name": "step", "ph": "X", "ts": "x", "pid": [], "dur": 1}',
        '{"name": "step", "ph": "X", "ts": 1, "pid": 0}',
    ]
    (run / "trace.json").write_text("[\n" + ",\n".join(lines) + ",\n" + event("step", 0, 10, 0))
    assert get(run, "run")["time"]["phases"] == [] and len(get(run, "step-000001/anatomy")["ranks"]) == 1
    (run / "trace.json").write_bytes(os.urandom(100_000))
    assert get(run, "run")["time"]["phases"] == []
    # The rollouts know their own times.
    assert get(run, "step-000001/anatomy")["ranks"] == [] and len(get(run, "step-000001/anatomy")["rollouts"]) == 12
    (run / "trace.json").unlink()
    assert get(run, "run")["time"]["steps"] == 0


NAMES = ["a'b\"c", "new\nline", "<script>alert(1)</script>", "..%2f..%2f", "...", "-rf", "é\u202e", "a=2Fb", "=", "x" * 200]


def test_names_of_runs_that_mean_ill(tmp_path):
    root = tmp_path / "runs"
    for name in NAMES:
        write_run(root / name, steps=1)
    os.mkdir(os.fsencode(root) + b"/\xff\xfe")
    (root / os.fsdecode(b"\xff\xfe") / "metrics.jsonl").write_text("")
    runs = Runs(root)
    page = json.loads(encoded(answer(runs, "runs.json", {})))
    keys = {run["key"] for run in page["runs"]}
    assert len(keys) == len(NAMES) + 1 == len(page["runs"]) and keys >= {key_of(name) for name in NAMES}
    for key in keys:
        assert all(c.isalnum() or c in "=._-" for c in key) and key.isascii() and not key.startswith(".")
        assert answer(runs, f"{key}/run.json", {})["key"] == key


def test_a_folder_that_cannot_be_read_hides_no_other(run):
    (run.parent / "two").mkdir()
    (run.parent / "two" / "metrics.jsonl").mkdir()
    (run.parent / "two" / "rollouts").mkdir()
    (run.parent / "two" / "config.json").write_text("{}")
    rows = json.loads(encoded(answer(Runs(run.parent), "runs.json", {})))["runs"]
    assert [(row["key"], row["state"]) for row in rows] == [("one", "stopped"), ("two", "broken")] and "directory" in rows[1]["fault"]


def test_an_older_run_without_the_new_columns(run):
    """Format 1: an object a line."""
    row = {
        "prompt_id": "p",
        "sample": 0,
        "set": "x",
        "prompt": "1+1?",
        "answer": "2",
        "text": "2",
        "tokens": [1, 2],
        "logprobs": [None, -0.5],
    }
    row |= {
        "outcome": "correct",
        "verdict": None,
        "reward": 1.0,
        "advantage": 0.0,
        "kept": True,
        "finish_reason": "stop",
        "policy_version": 1,
    }
    (run / "rollouts" / "step-000004.jsonl").write_text("".join(json.dumps(row | {"sample": n}) + "\n" for n in range(3)))
    page = get(run, "step-000004/train")
    assert page["groups"][0]["cells"] == "rrr" and get(run, "run")["steps"]["train"] == [1, 2, 3, 4]
    rollout, tokens = get(run, "step-000004/train/rollout-0-2"), get(run, "step-000004/train/tokens-0-2")
    assert (
        rollout["times"]["sampled"] is None
        and rollout["window"] is None
        and tokens["logprobs"] == [None, -0.5]
        and tokens["trained"] is None
    )
    (run / "rollouts" / "step-000005.jsonl").write_text('{"prompt_id": [}\n')
    assert "no JSON object" in get(run, "step-000005/train")["faults"][0]
