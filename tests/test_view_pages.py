"""What the inspector says of a run: every page against what has been written."""

import json
import subprocess
import sys

import numpy as np
import pytest
from view_runs import BEGIN, FLAWED, LETTERS, SAID, WRONG, group_of, metrics, write_run

from soundrl.fapo.records import Outcome
from soundrl.view.api import answer
from soundrl.view.plain import NotThere, encoded
from soundrl.view.runs import Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view") / "runs"
    write_run(folder / "one")
    write_run(folder / "deep" / "two words")
    return Runs(folder)


def get(runs: Runs, path: str, **asked: str):
    """As a page gets it: through JSON."""
    return json.loads(encoded(answer(runs, path, asked)))


def test_the_inspector_imports_no_torch():
    """Nor what else is large: its memory is to stay small beside a run."""
    modules = "server bundle api __main__ judge advice anatomy find overview rollouts vocabulary labels".split()
    code = "import sys\n" + "".join(f"import soundrl.view.{name}\n" for name in modules)
    code += "print([name for name in ('torch', 'vllm', 'transformers', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_runs_are_listed_with_their_health(runs):
    page = get(runs, "runs.json")
    assert [(run["key"], run["name"]) for run in page["runs"]] == [("deep=2Ftwo=20words", "deep/two words"), ("one", "one")]
    run = page["runs"][1]
    assert (run["state"], run["step"], run["steps"], run["recipe"], run["task"]) == ("stopped", 3, 4, "arith-genrm", "reasoning")
    assert run["started"] == BEGIN and run["eta"] is None and run["alarms"] == []
    figures = run["figures"]
    assert (figures["right"], figures["flawed"], figures["flawed_corrected"], figures["flawed_low"]) == (0.5, 0.3, 0.25, 0.2)
    assert (figures["sound"], figures["sound_low"], figures["gate"], figures["judge_f1"]) == (0.3, 0.2, 1.001, None)
    assert figures["tokens_per_second"] == 30.0 * 3 * 4 / 10.0


def test_one_run_is_a_folder_of_one(runs):
    assert [run["key"] for run in get(Runs(runs.root / "one"), "runs.json")["runs"]] == ["one"]
    with pytest.raises(ValueError, match="is no folder"):
        Runs(runs.root / "nowhere")


def test_the_page_of_a_run(runs):
    page = get(runs, "one/run.json")
    assert page["steps"] == {"train": [1, 2, 3], "eval": [0, 3], "replaced": []} and page["total"] == 4 and page["sets"] == ["arith-test"]
    assert page["config"]["run"]["name"] == "one" and ["run.steps", 32, 4] in page["differs"]
    assert page["before"]["arith-test/sound_low"] == 0.2 and page["after"]["arith-test/accuracy"] == 0.5
    of_phases = {"training_mib": 1050.0}  # others were not measured
    assert page["memory"] == {"planned": None, "measured": {"rss_mib": 1100.0, "gpu_mib": None} | of_phases} and page["faults"] == []
    shares = {name: (seconds, share) for name, seconds, share in page["time"]["phases"]}
    assert shares["generate"] == (pytest.approx(4.5), pytest.approx(0.45)) and shares["train"] == (pytest.approx(4.0), pytest.approx(0.4))
    assert page["time"]["hidden"] == 0.75 and dict(page["time"]["path"])["judge_wait"] == pytest.approx(1.0) and page["time"]["steps"] == 3


def test_series_are_told_from_a_step_on(runs):
    page = get(runs, "one/series.json")
    assert page["steps"] == [1, 2, 3] and page["series"]["reward/correct"] == [0.5] * 3 and page["eval_steps"] == [0, 3]
    assert page["eval_series"]["eval/arith-test/sound"] == [0.3, None]
    later = get(runs, "one/series.json", after="2")
    assert later["steps"] == [3] and later["series"]["time/step"] == [10.0] and later["eval_steps"] == [3]
    with pytest.raises(ValueError, match="give a whole number"):
        get(runs, "one/series.json", after="x")


def test_the_page_of_a_step(runs):
    page = get(runs, "one/step-000002/train.json")
    groups = page["groups"]
    assert [group["cells"] for group in groups] == ["sfwn", "fuwr", "wwww"] and [group["prompt_id"] for group in groups] == [
        "p:0",
        "p2:0",
        "p2:1",
    ]
    own = group_of("p:0", "sfwn")
    assert groups[0]["rewards"] == own.rewards and groups[0]["advantages"] == own.advantages
    assert groups[0]["lengths"] == [len(rollout.tokens) for rollout in own.rollouts] and groups[0]["cut"] == [False, False, False, True]
    assert [group["signal"] for group in groups] == [True, True, False]
    assert {name: groups[0][name] for name in ("alpha", "beta", "gamma", "rho", "threshold", "past")} == {
        "alpha": 1, "beta": 2, "gamma": 1, "rho": 0.5, "threshold": 1.0, "past": False,
    }  # fmt: skip
    assert groups[1]["disagree"] == [True, False, False, False]
    assert page["totals"] == {"s": 1, "f": 2, "w": 6, "u": 1, "n": 1, "r": 1} and page["faults"] == []
    assert page["filters"] == {
        "flawed": 2, "unknown": 1, "disagree": 1,
        "flipped": sum(sum(g["flipped"]) for g in groups), "cut": 1, "wrong": 6, "noanswer": 1, "sound": 1,
    }  # fmt: skip


def test_an_evaluations_samples_are_one_group(runs):
    """The file holds the first sample of every problem, then the second."""
    groups = get(runs, "one/step-000003/eval.json")["groups"]
    assert [(group["cells"], group["rewards"], group["set"]) for group in groups] == [("sw", [None, None], "arith-test")]
    page = get(runs, "one/step-000003/eval/group-0.json")
    assert [rollout["text"] for rollout in page["rollouts"]] == [SAID["s"][0], WRONG] and page["rule"] is None


def test_the_page_of_a_group(runs):
    get(runs, "one/step-000001/train.json")  # so that the index knows it
    page = get(runs, "one/step-000002/train/group-0.json")
    assert page["prompt"].startswith("35*2") and page["answer"] == "1" and page["rule"]["base"] == [1.0, 1.0, -1.0, -1.0]
    flawed = page["rollouts"][1]
    assert flawed["text"] == FLAWED and flawed["whole"] and flawed["extracted"] == "1" and flawed["outcome"] == "correct"
    assert flawed["verdict"] == {"kind": "flawed", "step": 2, "reason": ""} and (
        flawed["reward"],
        flawed["cell"],
        flawed["judge_seconds"],
    ) == (0.0, "f", 2.5)
    assert flawed["oracle"] == {"kind": "flawed", "step": 2, "reason": "false"} and page["rollouts"][2]["oracle"] is None
    assert [1, "train", 0] in page["elsewhere"] and [2, "train", 0] not in page["elsewhere"]


def test_the_page_of_a_rollout(runs):
    page = get(runs, "one/step-000002/train/rollout-0-1.json")
    assert page["paragraphs"] == FLAWED.split() and page["votes"] == ["flawed 2", "sound", "flawed 2"] and page["judge_tokens"] == 28
    assert page["critique"].endswith("\\boxed{2}") and page["id"] == "2/p:0/1" and page["label"] is None and page["window"] == 1
    assert page["times"] == {"sampled": BEGIN + 2, "verified": BEGIN + 2.5, "asked": BEGIN + 3, "first_token": None, "answered": BEGIN + 4}
    assert page["neighbours"] == {"before": [0, 0], "after": [0, 2]} and page["left"] == 0
    other = get(runs, "one/step-000002/train/rollout-1-0.json")
    assert other["second"] == {"kind": "sound", "step": None} and other["oracle"]["kind"] == "sound"
    turns = get(runs, "one/step-000002/train/rollout-2-0.json")["turns"]
    assert [(turn["own"], turn["tool"]) for turn in turns] == [(True, ""), (False, "calculator"), (True, "")]


def test_the_judges_question_is_made_anew(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the judge's card is named by a path of the run
    (tmp_path / "starts" / "judge").mkdir(parents=True)
    assert get(runs, "one/step-000002/train/rollout-0-1.json")["judge_prompt"] is None
    (tmp_path / "starts" / "judge" / "card.json").write_text('{"prompt": "own"}')
    asked = get(runs, "one/step-000002/train/rollout-0-1.json")["judge_prompt"]
    assert "<paragraph_2>\n68+7=85\n</paragraph_2>" in asked and "[Reference answer]\n\n1" in asked
    assert get(runs, "one/step-000002/train/rollout-0-2.json")["judge_prompt"] is None  # was not judged


def test_tokens_with_what_training_has_computed(runs):
    own = group_of("p:0", "sfwn").rollouts[1]
    page = get(runs, "one/step-000002/train/tokens-0-1.json")
    assert page["ids"] == own.tokens.tolist() and page["count"] == len(own.tokens) and page["mask"] is None
    assert page["logprobs"] == own.logprobs.tolist() and page["trained"] == (own.logprobs - np.float32(0.25)).tolist()
    assert page["entropy"] == [0.5] * len(own.tokens) and page["advantage"] == group_of("p:0", "sfwn").advantages[1]
    part = get(runs, "one/step-000002/train/tokens-0-1.json", **{"from": "3"})
    assert part["from"] == 3 and part["ids"] == page["ids"][3:] and part["trained"] == page["trained"][3:]
    several = get(runs, "one/step-000002/train/tokens-2-0.json")
    assert several["mask"][:6] == [1, 1, 1, 0, 0, 1] and several["trained"] is None  # its group has trained nothing


def test_anatomy_of_a_step(runs):
    page = get(runs, "one/step-000002/anatomy.json")
    assert page["begin"] == BEGIN + 10 and [rank["rank"] for rank in page["ranks"]] == [0, 1]
    assert page["ranks"][1]["phases"] == [["generate", 0.0, 5.0], ["judge_wait", 5.0, 6.0], ["train", 6.0, 10.0]]
    assert page["ranks"][0]["details"] == [["micro-batch", 7.0, 9.0]] and len(page["rollouts"]) == 12
    # By the file's own times; step 2 has begun 10 s after `BEGIN`.
    assert page["rollouts"][1] == [0, 1, 0, -8.0, -7.5, -7.0, None, -6.0, 1] and page["rollouts"][8][:3] == [2, 0, 1]
    with pytest.raises(NotThere, match="says nothing of step 9"):
        get(runs, "one/step-000009/anatomy.json")


def test_the_page_of_the_judge(runs):
    page = get(runs, "one/judge.json")
    # Each step: sound called sound, flawed in 2 called so, sound called flawed in 1.
    assert page["confusion"] == {
        "distance": {"0": 3},
        "sound_called_flawed": 3,
        "flawed_called_sound": 0,
        "agree": 6,
        "of": 9,
        "by": "oracle",
    }
    assert sorted(page["critiques"])[0] == [20, 0.5, "s"] and len(page["critiques"]) == 9 and page["canaries"] is None
    row = page["disagreements"][0]
    assert (row["id"], row["first"], row["second"]) == ("2/p2:0/0", {"kind": "flawed", "step": 1}, {"kind": "sound", "step": None})
    assert len(page["disagreements"]) == 1 and row["label"] is None and (row["kind"], row["g"]) == ("train", 1)


def test_canaries_by_attack(runs, tmp_path):
    run = write_run(tmp_path / "one", steps=1)
    told = {"genrm/probe_canary_box": 2.0, "genrm/probe_canary_box_of": 4.0, "genrm/probe_canary_accepted": 0.5}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(2) | told) + "\n" + json.dumps(metrics(3)) + "\n")
    assert get(Runs(tmp_path), "one/judge.json")["canaries"] == [{"attack": "box", "accepted": 2, "of": 4}]


def test_find_in_texts_and_problems(runs):
    page = get(runs, "one/find.json", q="68+7=85", steps="1-2")
    where = [(hit["step"], hit["g"], hit["sample"], hit["where"]) for hit in page["hits"]]
    assert (
        where == [(step, 0, 1, kind) for step in (1, 2) for kind in ("text", "critique")]
        and page["searched"] == [1, 2]
        and not page["more"]
    )
    assert (page["hits"][0]["before"][-5:], page["hits"][0]["hit"]) == ("2=68\n", "68+7=85")
    assert len(get(runs, "one/find.json", q="35*2-2+7", steps="3")["hits"]) == 3  # a problem is one hit of its group
    assert [hit["where"] for hit in get(runs, "one/find.json", q="WRONG \\BOXED", steps="1")["hits"]] == ["critique"] * 2
    assert get(runs, "one/find.json", q="nowhere")["hits"] == []
    for q, steps, why in (("", "1", "1 to 200"), ("a", "1;2", "steps are written")):
        with pytest.raises(ValueError, match=why):
            get(runs, "one/find.json", q=q, steps=steps)


def test_a_prompt_at_every_step(runs):
    page = get(runs, "one/prompt.json", id="p:0")
    assert page["places"] == [[step, "train", 0, "sfwn"] for step in (1, 2, 3)] and page["searched"] == [0, 3] and page["left"] == 0


@pytest.mark.parametrize(
    "path",
    "nothing.json two/run.json one/step-000009/train.json one/step-000002/other.json one/step-000002/train/group-3.json one/../run.json "
    "one/step-000002/train/rollout-0-4.json one/step-000002/train/rollout-0.json one/step-000002/probe.json".split(),
)
def test_what_is_not_there_is_said(runs, path):
    with pytest.raises(NotThere):
        get(runs, path)


def test_letters_are_those_of_the_table(runs):
    seen = "".join(group["cells"] for group in get(runs, "one/step-000001/train.json")["groups"])
    assert seen == "".join(LETTERS.get(kind, kind) for kind in "sfwn" + "xuwr" + "wwww")
    assert Outcome.UNKNOWN in {outcome for _, outcome, _ in SAID.values()} and metrics(1)["step"] == 1


def test_pieces_of_text_by_the_runs_own_vocabulary(tmp_path, monkeypatch):
    from tokenizers import Tokenizer, decoders, models

    monkeypatch.chdir(tmp_path)  # the configuration names starts/policy, from here
    run = write_run(tmp_path / "runs" / "one", steps=1)
    assert get(Runs(run.parent), "one/step-000001/train/tokens-0-1.json")["pieces"] is None
    folder = run / "policy" / "step-000001"
    folder.mkdir(parents=True)
    made = Tokenizer(models.BPE({"a": 3, "Ġb": 4, "Ã": 5, "©": 6}, []))
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    page = get(Runs(run.parent), "one/step-000001/train/tokens-0-1.json")
    # Half of a character reads as the vocabulary writes it, and an id that it has not by its number.
    assert page["ids"][:5] == [3, 4, 5, 6, 7] and page["pieces"][:5] == ["a", " b", "Ã", "©", "⟨7⟩"]
    (folder / "tokenizer.json").write_text("{")
    assert get(Runs(run.parent), "one/step-000001/train/tokens-0-1.json")["pieces"] is None
