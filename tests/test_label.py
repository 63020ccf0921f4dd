"""A person labels what two judges disagree about: in the terminal, by the command line, and what is read back."""

import json

import pytest

from soundrl.genrm import label
from soundrl.genrm.critic_data.labelled import Labelled, load_labelled
from soundrl.genrm.labels import Labels, id_of


def verdict(kind: str, step: int | None, critique: str = "Checked.") -> dict:
    return {"kind": kind, "step": step, "reason": "", "critique": critique, "worker": "", "votes": []}


@pytest.fixture
def run(tmp_path):
    lines = []
    for sample in range(3):
        row = {
            "step": 12,
            "prompt_id": "gsm8k.jsonl:17",
            "sample": sample,
            "problem": "1+1\x1b[31m?",
            "paragraphs": ["It is\u2028 2.", "So 3."],
        }
        lines.append(row | {"reference": "2", "first": verdict("sound", None, "\x1b]0;owned\x07"), "second": verdict("flawed", 1)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "disagreements.jsonl").write_text(text + text[:50])  # the last one is being written
    return tmp_path


def ids(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()]


def test_what_is_labelled_reads_back_as_solutions(run, capsys):
    label.run([str(run), "--list"])
    listed = capsys.readouterr().out
    assert ids(listed) == [f"12/gsm8k.jsonl:17/{sample}" for sample in range(3)] and "first: sound, other: flawed 1" in listed
    label.run([str(run), "--set", "12/gsm8k.jsonl:17/1", "-1"])
    label.run([str(run), "--set", "12/gsm8k.jsonl:17/0", "1"])
    label.run([str(run), "--set", "12/gsm8k.jsonl:17/1", "0"])  # another thought
    assert "2 labels in" in capsys.readouterr().err
    steps = ("It is\u2028 2.", "So 3.")
    assert load_labelled(str(run / "labels.jsonl")) == [
        Labelled(id=f"12/gsm8k.jsonl:17/{sample}", problem="1+1\x1b[31m?", steps=steps, label=at, answer="2")
        for sample, at in ((1, 0), (0, 1))
    ]
    label.run([str(run), "--list"])
    assert ids(capsys.readouterr().out) == ["12/gsm8k.jsonl:17/2"]


def test_in_the_terminal_nothing_is_obeyed(run, capsys, monkeypatch):
    said = iter(["2", "three", "1", "s", "q"])
    monkeypatch.setattr(label.ask, "__defaults__", (lambda words: next(said),))
    label.run([str(run)])
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u2028"} & set(out) and "\\x1b[31m" in out and "[0] It is" in out and "other judge: flawed 1" in out
    assert out.count("is no paragraph of the 2 of") == 2
    assert [(row.id[-1], row.label) for row in load_labelled(str(run / "labels.jsonl"))] == [("0", 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "12/gsm8k.jsonl:17/9", "0"), "no such disagreement"),
        (("--set", "12/gsm8k.jsonl:17/0", "2"), "2 is no paragraph of the 2"),
        (("--set", "12/gsm8k.jsonl:17/0", "-2"), "-2 is no paragraph of the 2"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, words, run, capsys):
    with pytest.raises(SystemExit) as end:
        label.run([str(run), *arguments])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: ") and words in err and err.count("\n") == 1
    assert not (run / "labels.jsonl").exists()


def test_a_run_without_disagreements_and_a_damaged_file(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        label.run([str(tmp_path / "other")])
    assert "no second opinion of this run has disagreed" in capsys.readouterr().err
    (run / "labels.jsonl").write_text('{"id": 1}\nnonsense\n')
    with pytest.raises(SystemExit):
        label.run([str(run), "--list"])
    assert "labels.jsonl:2: no JSON object" in capsys.readouterr().err


def test_any_judged_rollout_takes_a_label_and_gives_it_back(run, tmp_path):
    alone = tmp_path / "alone"  # a run in which no two judges disagree
    alone.mkdir()
    row = {"problem": "2+2?", "paragraphs": ["It is 4.", "So 4."], "reference": "4"}
    labels = Labels(alone)
    assert labels.left == [] and labels.of("8/p/0") is None
    labels.set(id_of(8, "p", 0), 1, row)
    labels.set(id_of(8, "p", 1), -1, row)
    solution = {"problem": "2+2?", "steps": ("It is 4.", "So 4."), "answer": "4"}
    assert load_labelled(str(labels.path)) == [Labelled(id="8/p/0", label=1, **solution), Labelled(id="8/p/1", label=-1, **solution)]
    assert Labels(alone).of("8/p/0") == 1
    labels.set("8/p/0", None)
    assert [each.id for each in load_labelled(str(labels.path))] == ["8/p/1"] and Labels(alone).of("8/p/0") is None
    labels.set("8/p/0", None)  # it has none: nothing is done
    labels.set("8/p/1", None)
    assert not labels.path.exists() and Labels(alone).rows == {}
    with pytest.raises(ValueError, match="2 is no paragraph of the 2 of 8/p/0"):
        labels.set("8/p/0", 2, row)
    with pytest.raises(ValueError, match="no such disagreement"):
        labels.set("8/p/0", 0)
    both = Labels(run)
    both.set("12/elsewhere/0", 0, row)
    both.set("12/gsm8k.jsonl:17/0", 1)
    assert [each.problem for each in load_labelled(str(both.path))] == ["2+2?", "1+1\x1b[31m?"] and len(both.left) == 2
