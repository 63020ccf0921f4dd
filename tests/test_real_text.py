"""Real text: sums that a text states, critiques of planted flaws, shares of nothing, and the stages of `bench/science/real_text.py` on a
tiny model: killed in a stage and between two, it goes on."""

import json
import sys
import zlib
from dataclasses import replace

import pytest
from conftest import ROOT, start
from fake_judge import Handler, Server, said

from soundrl.engine.environments.files import worked
from soundrl.fapo.corrected import Errors
from soundrl.fapo.data.files import load_prompts
from soundrl.genrm.critic_data.critic_data import Planted, planted_rows
from soundrl.genrm.critic_data.labelled import Critiqued, load_critic, load_labelled, write_rows
from soundrl.genrm.prompts import PROMPTS

sys.path.insert(0, str(ROOT / "bench" / "science"))
import text_table
from stated_sums import stated, worked_out
from text_shares import shares


@pytest.mark.parametrize(
    ("text", "false"),
    [
        ("48/2 = 24 clips, 48+24=73.", [False, True]),
        ("$1,200 - $200 = $1,100 and 2.5 x 4 = 10", [True, False]),
        (r"so \(12 \times 3 = 36\), \[36 \div 3 = 13\]", [False, True]),
        ("10/3 = 3.3, 10/3 = 3, 10/3 = 4, 2/3 = 0.67, 2/3 = 0.5", [False, False, False, False, True]),  # rounded up and down
        ("((2+3)*4-6)/7 = 2 and ((2+3)*4-6)/7 = 3", [False, True]),
        ("16 − 3 – 4 = 9; 16 − 3 – 4 = 10", [False, True]),
        ("x + 3*2 = 10, 2x + 3 = 7, 3x4 = 11", [True]),  # an equation is no sum
        ("2+3 = 5+1 = 6, 2+3 = 5*2", []),  # a chain may mean anything
        ("20% of 50 = 11, 5 apples + 3 = 9, 50 * 20% = 11, 5 + 3 = 9%", []),
        ("$1 / 2 = 50, 1/4 = 15, 600 * 3 = 1.8", []),  # cents, minutes, thousands
        ("50 / 1/2 = 100, 1 1/2 + 2 = 3.5, 12-5-2024 = 7", [True]),  # of the last the signs say so
        ("1/0 = 5, 1/(2-2) = 5, (2+3 = 6, 2+3) = 5", []),
        ("a1+1 = 3, 1+1 = 3a, 1+1 = 3.5.1, v1.5+1 = 9", []),
        ("(" * 200 + "1+1" + ")" * 200 + " = 3", []),
        ("1+1 = " + "9" * 5000, []),
        ("1" * 5000 + "+1 = 3, " + "1+" * 400 + "1 = 3, 1+1 = 0." + "9" * 5000, []),
        ("1+" * 5000 + "1", []),
        ("1+" * 5000 + "1 = 3", []),
        ("(" * 5000 + "1+1 = 3", []),
        ("1+1" + ")" * 5000 + " = 3", []),
        ("1 " * 5000 + "= 1" + " " * 5000 + "+", []),
    ],
)
def test_sums_that_a_text_states(text, false):
    assert [one.false for one in stated(text)] == false


def test_an_expression_that_has_no_value():
    for text in ("", "+", "1+", "(1", "1)", "()", "1 2", "1//2", "--1"):
        assert worked_out(text) is None, text


def problem(number: int, long: bool = False) -> dict[str, str]:
    boxes, pens, more = 3 + number % 5, 4 + number % 7, 5 + number % 3
    first, last = boxes * pens, boxes * pens + more
    solution = f"The boxes hold {boxes}*{pens} = <<{boxes}*{pens}={first}>>{first} pens.\n"
    solution += f"With {more} more these are {first}+{more} = <<{first}+{more}={last}>>{last} pens.\n#### {last}"
    text = f"Ann has {boxes} boxes of {pens} pens and buys {more} pens. " + "It rains. " * (1200 if long else 0) + f"How many? ({number})"
    return {"problem": text, "answer": str(last), "solution": solution}


@pytest.mark.parametrize("prompt", ["own", "paper", "outcome"])
def test_planted_rows_hold_critiques_that_a_warm_start_reads(prompt, tmp_path):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(problem(i)) + "\n" for i in range(6)))
    rows = planted_rows(Planted(problems=str(tmp_path / "p.jsonl"), out=tmp_path))
    write_rows(tmp_path / "rows.jsonl", rows, "train")
    assert load_labelled(str(tmp_path / "rows.jsonl"))[0] == Critiqued(**vars(rows[0]) | {"id": f"{tmp_path}/rows.jsonl:1"})
    for row, asked in zip(rows, load_critic(str(tmp_path / "rows.jsonl"), prompt=prompt), strict=True):
        text = worked(asked)
        verdict = PROMPTS[prompt].parse(text, "stop", len(row.steps))
        assert verdict.kind == ("sound" if row.label < 0 else "flawed")
        assert verdict.step == (row.label if row.label >= 0 and PROMPTS[prompt].locates else None)
        assert text.count("Right.") == (len(row.steps) if row.label < 0 else row.label) and text.count("Wrong.") == (row.label >= 0)
    bad = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    bad["extra_info"]["critique"] = 7
    (tmp_path / "bad.jsonl").write_text(json.dumps(bad) + "\n")
    with pytest.raises(ValueError, match=r"bad.jsonl:1: extra_info.critique: 7 where a text is expected"):
        load_critic(str(tmp_path / "bad.jsonl"))


def test_a_solution_of_a_warm_start_has_a_paragraph_a_step(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps(problem(1)) + "\n")
    assert worked(load_prompts(tmp_path / "p.jsonl")[0]).split("\n\n") == [
        "The boxes hold 4*5 = 20 pens.",
        "With 6 more these are 20+6 = 26 pens.",
        "\\boxed{26}",
    ]


def rollout(text: str, outcome: str, verdict: dict | None = None) -> dict:
    return {"prompt_id": "p", "text": text, "outcome": outcome, "verdict": verdict, "finish_reason": "stop"}


def test_shares_of_what_is_there_and_of_nothing():
    unknown, flawed, sound = ({"kind": kind, "step": None, "reason": "no_box"} for kind in ("unknown", "flawed", "sound"))
    silent = [rollout("1+1 = 3", "correct", unknown), rollout("1+1 = 3", "wrong"), rollout("", "unknown")]
    found = shares(silent, {"planted": Errors(0, 0, 0, 0), "processbench": Errors(3, 7, 10, 193)})
    assert found["coverage"] == {"share": [0.0, 0.0, 0.7935], "n": 1} and found["unknown"] == {"no_box": 1} and found["unchecked"] == 1
    assert found["flawed, raw"] is found["flawed, corrected by planted"] is found["flawed, corrected by processbench"] is None
    assert found["false sum, of right"]["n"] == 1 and found["called flawed, of right with a false sum"] is None
    assert shares([], {})["right"] is None and shares([rollout("", "wrong")], {})["coverage"] is None
    rows = [rollout("1+1 = 3", "correct", flawed)] * 3 + [rollout("1+1 = 2", "correct", sound)] * 7
    found = shares(rows, {"planted": Errors(45, 50, 2, 50)})
    assert found["flawed, raw"]["share"][0] == 0.3 and found["called flawed, of right with a false sum"]["n"] == 3
    value, low, high = found["flawed, corrected by planted"]["share"]
    assert low < 0.3 < high and value == pytest.approx((0.3 - 2.5 / 51) / (45.5 / 51 - 2.5 / 51), abs=1e-3)


def judge(handler: Handler, number: int) -> None:
    """By what it is asked: sound, flawed at paragraph 0, or nothing at all."""
    content = handler.body["messages"][0]["content"]
    answer = ("\\boxed{-1}", "\\boxed{0}", "I do not know.")[zlib.crc32(content.encode()) % 3]
    handler.send(200, said(answer, model=handler.body["model"]))


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """What `tests/workers/text.py` leaves: killed in the judge's warm start, stopped in the benchmark, brought to its end, again."""
    root = tmp_path_factory.mktemp("text")
    data, server = root / "data", Server(judge)
    (data / "processbench").mkdir(parents=True)
    for name, first in (("train", 0), ("test", 100)):
        rows = [problem(first + i, long=name == "train" and i == 2) for i in range(8)]
        (data / f"gsm8k-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [problem(i)["solution"] for i in range(8)]
    asked = [(problem(100 + i)["problem"], texts[i].split("\n")) for i in range(8)]
    labels = [{"id": f"b-{i}", "final_answer_correct": i % 2 == 0, "label": i % 3 - 1} for i in range(8)]
    bench = [label | {"problem": text, "steps": steps} for label, (text, steps) in zip(labels, asked, strict=True)]
    (data / "processbench" / "gsm8k.json").write_text(json.dumps(bench))
    said = [*texts, *(PROMPTS["own"].messages(text, steps, "7")[0]["content"] for text, steps in asked)]

    def call(model: str, data: str, out: str, **happens) -> dict:
        words = ["smoke", "--model", root / model, "--data", root / data, "--out", root / out, "--results", root / "rows.jsonl"]
        words += ["--problems", 8, "--rows", 6, "--critic-steps", 4, "--policy-steps", 2, "--solution-tokens", 24]
        return {"words": list(map(str, words)), **happens}

    whole = call("model", "data", "out")
    calls = [whole | {"kill": ["judge", 3]}, whole | {"stop": 9}, whole, whole]
    calls += [call("model", "data", "out")]
    calls[-1]["words"] += ["--critic-steps", "5"]
    calls += [call("base", "data", "none"), call("nowhere", "data", "none"), call("model", "nowhere", "none")]
    arguments = {"calls": calls, "url": server.url, "root": str(root), "texts": said}
    done = start([sys.executable, "tests/workers/text.py", json.dumps(arguments), str(root / "said.json")])
    server.stop()
    assert (root / "said.json").is_file(), done.stdout[-2000:] + done.stderr[-5000:]
    rows = {row["stage"]: row for row in map(json.loads, (root / "rows.jsonl").read_text().splitlines())}
    return root, server, rows, json.loads((root / "said.json").read_text()), done.stdout[-2000:] + done.stderr[-5000:]


def test_killed_within_a_stage_and_between_stages_it_goes_on(stages):
    root, server, rows, said, log = stages
    assert said["calls"][1:4] == ["130", "done", "done"], log
    assert "ended with status 9" in said["calls"][0]  # witness: the kill
    steps = (root / "said.steps").read_text().split()
    # The judge's: two before it was killed in its third; the rest from the checkpoint after the first or second.
    assert steps.count("speed") == 4 and steps.count("policy") == 2 and 4 <= steps.count("judge") <= 5
    assert list(rows) == ["speed", "rows", "judge", "benchmark", "policy", "flawed", "kinds", "pair"]
    assert len((root / "rows.jsonl").read_text().splitlines()) == len(rows)  # nothing twice, though the stages were read three times
    assert not (root / "out" / "judge" / "run" / "warm_start").exists()
    assert rows["judge"]["found"]["model"] == said["judge"]  # the same bits as without a kill
    benchmark = [body for body in server.bodies if body["model"] != "genrm" and body["max_tokens"] > 1]
    assert 48 <= len(benchmark) <= 48 + 3  # judges × ways × rows; of twelve nine were known, and those on their way are asked again


def test_what_the_stages_have_found(stages):
    _, _, rows, _, _ = stages
    found = {name: row["found"] for name, row in rows.items()}
    assert found["rows"]["processbench"] == {"rows": 6} and found["rows"]["planted"]["rows"] == 6
    sums = found["rows"]["false sums"]
    # Which value is planted follows from the rows' path; a tenth of the right one may be a unit, and is left alone.
    assert sums["ignored"]["rows"] == 8 and 4 <= sums["ignored"]["with a false one"] == sums["ignored"]["at the flaw"]
    assert sums["sound"] == {"rows": 8, "with a sum": 8, "with a false one": 0, "at the flaw": 0} and sums["guess"]["with a false one"] == 0
    assert sums["processbench, sound"]["rows"] == 3 and sums["processbench, flawed"]["with a false one"] == 0
    assert found["judge"]["rows left out"] > 0 and found["judge"]["rows seen"] == 16 and found["policy"]["rows left out"] == 1
    for name in ("before, standard, processbench", "after, assisted, planted"):
        part = found["benchmark"][name]
        value, low, high = part["coverage"]
        assert part["rows"] == 6 and 0 <= low <= value <= high <= 1 and round(6 * value) == 6 - sum(part["unknown"].values())
    by_kind = found["kinds"]["after, standard"]
    assert by_kind == found["kinds"]["before, standard"] and sum(n for n, _, _ in by_kind.values()) == 6
    assert {kind: n for kind, (n, _, _) in by_kind.items()} == {k: n for k, n in found["rows"]["planted"].items() if k in by_kind}
    called = sum(flawed for kind, (_, flawed, _) in by_kind.items() if kind != "sound")
    recall = found["benchmark"]["after, standard, planted"]["recall"][0]
    flaws = sum(n for kind, (n, _, _) in by_kind.items() if kind != "sound")
    assert recall == pytest.approx(called / flaws, abs=1e-4) and all(n >= flawed >= exact for n, flawed, exact in by_kind.values())
    assert by_kind["sound"][2] == 0
    # The script does not hang on who is asked, so that nothing has changed.
    assert found["benchmark"]["after − before, standard, planted, f1"] == [0.0, 0.0, 0.0]
    assert found["flawed"]["right"] == {"share": [0.0, 0.0, 0.3244], "n": 8} and found["flawed"]["flawed, raw"] is None
    assert found["flawed"]["problems"] == 4 and found["pair"]["λ = 1"].keys() == {"step 0", "step 1"}
    assert found["pair"]["λ = 1"]["step 0"] == found["pair"]["λ = 0"]["step 0"]
    assert {"device", "torch", "commit", "date"} <= rows["flawed"]["stamp"].keys() and rows["flawed"]["preset"] == "smoke"


def test_the_pages_tables_are_what_the_rows_say(stages, tmp_path):
    root, _, rows, _, _ = stages
    (tmp_path / "page.md").write_text("before\n<!-- text -->\n<!-- /text -->\n")
    given = text_table.Arguments(rows=root / "rows.jsonl", pages=(tmp_path / "page.md",))
    with pytest.raises(SystemExit, match=r"not what the rows say: page\.md"):
        text_table.main(replace(given, check=True))
    text_table.main(given)
    text_table.main(replace(given, check=True))
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert sum("| ProcessBench |" in line for line in lines) == 4 and "all stages" in " ".join(lines[3:6])
    f1 = text_table.per_cent(rows["benchmark"]["found"]["after, assisted, planted"]["f1"])
    (line,) = (line for line in lines if line.startswith("| planted | shown | after |"))
    assert line.startswith(f"| planted | shown | after | {f1} |") and line.endswith("| +0.0 [+0.0, +0.0] | 6 |")
    assert "| right, of the policy's samples | 0.0 [0.0, 32.4] | 8 |" in lines and "| flawed by the judge, of these | – | 0 |" in lines
    assert "| sound | 8 | 8 | 0 | 0 |" in lines
    text_table.main(text_table.Arguments(check=True))  # the committed ones


def test_a_model_without_chat_template_or_data_is_refused_before_anything_starts(stages):
    root, _, _, said, _ = stages
    other, template, model, data = said["calls"][4:]
    assert "out/judge was made with critic_steps 4 (now 5)" in other and "rm -r" in other and "/out/flawed /" not in other.split("rm -r")[0]
    assert "base has no chat template, by which a judge is asked; take an instruct model" in template
    assert "nowhere/config.json is missing; name its folder by --model" in model and "gsm8k-train.jsonl is missing" in data
    assert not (root / "none").exists()
