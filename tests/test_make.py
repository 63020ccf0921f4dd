"""`soundrl.genrm.make`: what is left out, what each stage refuses, kills and faults in the stages of data, and the card.

Stages that train and serve for real, killed one after the other: `make genrm-kills`.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from fake_judge import MODEL, Handler, Server, said
from jinja2 import Template
from test_critic_data import policy, teacher

from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.environments.arithmetic.teacher import SLIPS, truth, world
from soundrl.engine.environments.arithmetic.teacher import teacher as careless
from soundrl.engine.launch.launch import parse_arguments
from soundrl.genrm import selection
from soundrl.genrm.critic_data.labelled import load_labelled, words
from soundrl.genrm.make import make as making
from soundrl.genrm.make import rows as stages_of_rows
from soundrl.genrm.make.card import write
from soundrl.genrm.make.make import command
from soundrl.genrm.make.rows import Making, asked_at
from soundrl.genrm.make.stages import Stages, digests
from soundrl.genrm.make.training import to_its_end, train_command
from soundrl.genrm.make.world import Known, problems_of, world_of
from soundrl.genrm.pool import scorer
from soundrl.genrm.verdict import unanimous

COUNT = 12


@pytest.fixture
def base(tmp_path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "card.json").write_text('{"figures": {"f1": 0.1}}')
    return folder


@pytest.fixture
def asked(tmp_path, base, monkeypatch):
    """Words of the command for `COUNT` problems, with the servers of policy and teacher."""
    monkeypatch.chdir(tmp_path)  # seeds follow from a problem's id, and that from its file's name as given
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"What is {i}: 2+2?", "answer": "4"}) + "\n" for i in range(COUNT)))
    servers = [Server(policy), Server(teacher)]
    given = ["--problems", problems.name, "--policies", f"{MODEL}@{servers[0].url}", "--teacher", f"{MODEL}@{servers[1].url}"]
    given += ["--base", str(base), "--out", str(tmp_path / "genrm"), "--held-out", "0.25", "0.25"]
    yield given, servers
    for server in servers:
        server.stop()


def found(folder: Path) -> dict[str, dict]:
    """What the stages have found, but for seconds."""
    files = sorted(folder.glob("genrm.work/*/stage.json"))
    return {file.parent.name: {k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"} for file in files}


def refused(capsys, given: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        command(given)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_parts_are_apart_by_problem_and_what_was_asked_is_not_asked_again(asked, tmp_path):
    given, servers = asked
    command([*given, "--until", "split"])
    first, count = found(tmp_path), [len(server.bodies) for server in servers]
    assert first["sampled"]["solutions"] == 4 * COUNT and first["labelled"]["labels split"] > 0  # witness: consensus left some out
    parts = {part: load_labelled(str(tmp_path / f"genrm.work/split/{part}.jsonl")) for part in ("train", "selection", "report")}
    problems = [words(problem) for rows in parts.values() for problem in {row.problem for row in rows}]
    assert len(set(problems)) == len(problems) > COUNT / 2
    for part, rows in parts.items():
        flawed = sum(row.label >= 0 for row in rows)
        assert 0 < flawed == first["split"][part]["flawed"] and (part != "train" or 2 * flawed == len(rows))
        assert all((row.label == 1) == ("2+2=5" in row.steps[1]) for row in rows if "maybe" not in row.steps[1])
    command([*given, "--until", "split"])
    assert found(tmp_path) == first and [len(server.bodies) for server in servers] == count


@pytest.mark.parametrize("which", [0, 1])
def test_killed_while_it_samples_or_labels_it_ends_in_the_same_rows(which, asked, tmp_path):
    given, servers = asked
    more = ["--until", "split", "--concurrency", "1"]
    command([*given, *more, "--out", str(tmp_path / "whole" / "genrm")])
    whole, script, group, seen = found(tmp_path / "whole"), servers[which].script, [], len(servers[which].bodies)

    def killing(handler: Handler, number: int) -> None:
        if number == seen + 20 and group:
            os.killpg(group.pop(), signal.SIGKILL)
        else:
            script(handler, number)

    servers[which].script = killing
    line = [sys.executable, "-m", "soundrl.genrm.make", *given, *more]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    group.append(process.pid)
    assert process.wait() == -signal.SIGKILL
    journal = tmp_path / "genrm.work" / ("sampled/solutions.jsonl", "labelled/labels.jsonl")[which]
    known = len(journal.read_text().splitlines()) - 1
    assert 0 < known < 4 * COUNT and (tmp_path / "genrm.work/sampled/stage.json").exists() == bool(which)  # witness
    servers[which].script, before = script, len(servers[which].bodies)
    command([*given, *more])
    assert found(tmp_path) == whole
    assert len(servers[which].bodies) - before < seen - 10  # what it knew is not asked again


@pytest.mark.parametrize("which", [0, 1])
def test_a_fault_of_a_server_is_never_a_label(which, asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scorer, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(stages_of_rows, "ROUNDS", 2)
    given, servers = asked
    script = servers[which].script
    servers[which].script = lambda handler, number: (
        script(handler, number) if number < 36 or handler.body["max_tokens"] == 1 else handler.send(503, {})
    )
    more = ["--until", "split", "--concurrency", "2"]
    error = refused(capsys, [*given, *more])
    assert "did not come" in error and "; the same command asks for them again" in error
    assert "split" not in found(tmp_path)  # witness
    servers[which].script = script
    command([*given, *more])
    command([*given, *more, "--out", str(tmp_path / "whole" / "genrm")])
    assert found(tmp_path) == found(tmp_path / "whole")


def test_other_settings_are_refused_with_what_differs_and_the_cure(asked, tmp_path, capsys):
    given, servers = asked
    command([*given, "--until", "split"])
    problems = Path(given[1])
    capsys.readouterr()
    for change, says in (
        (["--samples", "5"], "sampled was made with samples 4 (now 5)"),
        (["--votes", "2"], "labelled was made with votes 3 (now 2)"),
        (["--held-out", "0.2", "0.3"], "split was made with held-out [0.25, 0.25] (now [0.2, 0.3])"),
        (["--teacher", f"other@{servers[1].url}"], f"labelled was made with teacher {MODEL} (now other)"),
    ):
        error = refused(capsys, [*given, "--until", "split", *change])
        assert says in error and f"rm -r {tmp_path / 'genrm.work'}" in error and error.count("\n") <= 8, error
    problems.write_text(problems.read_text().replace("What is 3", "What was 3"))
    assert "sampled was made with problems " in refused(capsys, [*given, "--until", "split"])


def test_a_stage_whose_past_was_made_anew_is_refused(tmp_path, capsys):
    stages, made = Stages(tmp_path), []

    def make(folder: Path) -> dict:
        made.append(folder.name)
        return {"rows": len(made)}

    stages.done("sampled", {"seed": 0}, make)
    stages.done("labelled", {"votes": 3}, make)
    with pytest.raises(ValueError, match="is at work in another process"):
        Stages(tmp_path)
    stages.close()
    (tmp_path / "sampled" / "stage.json").unlink()
    stages = Stages(tmp_path)
    stages.done("sampled", {"seed": 0}, make)
    with pytest.raises(ValueError, match=rf"labelled was made with what came before \w+ \(now \w+\).*rm -r {tmp_path}/labelled$"):
        stages.done("labelled", {"votes": 3}, make)
    assert made == ["sampled", "labelled", "sampled"]


LONG = "What is the sum of all prime numbers below ten, and why?"


@pytest.mark.parametrize(
    "row",
    [
        {"problem": LONG, "answer": "17"},
        {"question": "what is the sum of all prime numbers below $ten$ and why"},
        {"problem": LONG, "steps": ["2+3+5+7=17"], "label": -1, "final_answer_correct": True},
        {"prompt": [{"role": "user", "content": LONG}], "reward_model": {"ground_truth": "17"}},
        {"prompt": [{"role": "user", "content": "x"}], "extra_info": {"question": LONG}},
        {"prompt": [{"role": "user", "content": f"Judge.\n\n[Problem]\n\n{LONG}\n\n[Solution]\n\n<paragraph_0>\n17\n</paragraph_0>"}]},
    ],
)
def test_a_benchmarks_problem_is_known_in_every_form(row, tmp_path):
    for name, rows in (
        ("bench.jsonl", [row]),
        ("train.jsonl", [{"problem": p, "answer": "17"} for p in (LONG, f"Solve: {LONG} Box it.", "Other?")]),
    ):
        (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in rows))
    with world_of(str(tmp_path / "train.jsonl"), 0, 0, [str(tmp_path / "bench.jsonl")]) as (left, out):
        assert [prompt.text for prompt in left.problems] == ["Other?"] and out == 2
    with world_of(str(tmp_path / "train.jsonl"), 0, 0) as (left, out):  # the inverse
        assert len(left.problems) == 3 and out == 0


def test_short_problems_are_known_as_a_whole_alone():
    known = Known(["What is x?", LONG])
    assert "what is X" in known and "If 2x=4, what is x?" not in known and f"{LONG} Really?" in known and LONG[:30] not in known


def test_a_file_without_problems_is_named(tmp_path):
    (tmp_path / "none.jsonl").write_text('{"text": "hello"}\n')
    with pytest.raises(ValueError, match=r"none.jsonl:1: problem: missing; a text problem, question or prompt is expected"):
        problems_of(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--teacher", "a@http://h/v1", "b@http://h/v1"], "--teacher a@http://h/v1 b@http://h/v1 are several"),
        (["--policies", "models/none"], "models/none is no model folder (it has no config.json) and no endpoint"),
        (["--temperature", "0"], "--votes 3 at temperature 0 are one reply 3 times"),
        (["--held-out", "0.5", "0.5"], "--held-out 0.5 0.5 are shares above 0"),
        (["--base", "models/none"], "--base models/none is no model folder"),
        (["--every", "0"], "--every 0: both must be at least 1"),
        (["--exclude", "none.json"], "none.json: no such file"),
    ],
)
def test_mistakes_end_in_one_line(change, says, asked, capsys):
    error = refused(capsys, [*asked[0], *change])
    assert says in error and error.count("\n") == 1, error


def test_all_problems_known_from_the_benchmark_is_said(asked, capsys):
    given, _ = asked
    assert f"no problem is left, {COUNT} stand in --exclude" in refused(capsys, [*given, "--exclude", given[1]])


def test_a_plan_says_stages_sizes_and_a_command_that_trains_and_does_nothing(asked, tmp_path, capsys):
    given, servers = asked
    command([*given, "--plan", "--steps", "100", "--every", "30", "--", "--rollout.prompts", "64"])
    said = capsys.readouterr().out
    assert f"{COUNT} problems (0 left out) × 1 policies × 4 = {4 * COUNT} solutions" in said and "5 checkpoints" in said
    line = next(line for line in said.splitlines() if "trained" in line)
    words = line.partition(": ")[2].partition(": ")[2].split()
    assert words[1].endswith("engine/train.py")
    config = parse_arguments(words[2:])
    assert (config.run.steps, config.run.save, config.rollout.prompts, config.run.task) == (100, (30, 2, 30), 64, "critic")
    assert config.data.test == () and config.data.skip_unusable and config.data.train[0].endswith("genrm.work/split/train.jsonl")
    assert not (tmp_path / "genrm.work").exists() and not servers[0].bodies


def test_paths_with_spaces_reach_the_training():
    words = train_command(Path("my runs"), "genrm-arith", {"model.path": (Path("my models/a b"),), "data.test": ()}, ["--run.steps", "3"])
    config = parse_arguments(words[2:])
    assert (config.model.path, config.run.folder, config.data.test, config.run.steps) == ("my models/a b", "my runs", (), 3)


class Judges:
    """In place of `JudgeServers`: an endpoint whose replies are the longer and the better the later the checkpoint, but for the last."""

    def __init__(self, serving, logs):
        step = int(serving.name.rpartition("-")[2])

        def judge(handler: Handler, number: int) -> None:
            flawed = "2+2=5" in handler.body["messages"][0]["content"] and step > 0
            body = said(f"\\boxed{{{1 if flawed else -1}}}", model=serving.name)
            handler.send(503 if Judges.faults and number % 5 == 4 else 200, body | {"usage": {"completion_tokens": 100 * (step + 1)}})
            Judges.faults -= bool(Judges.faults and number % 5 == 4)

        self.server = Server(judge)
        self.server.models = lambda handler: handler.send(200, {"data": [{"id": serving.name}]})
        self.urls = [self.server.url]

    faults = 0

    def wait(self) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stop()


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A run that leaves three checkpoints, and judges that are their servers."""

    def train(line, folder: Path, base: Path, prompt: str) -> dict:
        for step in range(3):
            path = folder / "run" / "policy" / f"step-{step:06d}"
            path.mkdir(parents=True)
            for name in ("config.json", "card.json"):
                (path / name).write_text((base / name).read_text())
            (path / "model.safetensors").write_bytes(bytes([step]))
        return {"checkpoints": {path.name: digests(path) for path in selection.exported(folder / "run")}}

    monkeypatch.setattr(making, "train", train)
    monkeypatch.setattr(selection, "JudgeServers", Judges)
    monkeypatch.setattr(scorer, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(Judges, "faults", 0)


def test_the_earliest_of_the_best_is_written_with_a_card_of_rows_apart(asked, trained, tmp_path, capsys):
    given, _ = asked
    command(given)
    out, work = tmp_path / "genrm", tmp_path / "genrm.work"
    card = json.loads((out / "card.json").read_text())
    assert card["step"] == 1 and (out / "model.safetensors").read_bytes() == b"\1"  # as good as step 2, and earlier
    assert [(c["step"], c["tokens"]) for c in card["selection"]] == [(0, 100), (1, 200), (2, 300)]
    assert card["sha256"] == digests(out) and set(card["sha256"]) == {"config.json", "model.safetensors"}
    assert card["prompt"] == "own" and card["figures"]["tokens"] == 200 and card["figures"]["f1"] != 0.1  # not the card of the base
    rows = load_labelled(str(work / "split/report.jsonl"))
    assert card["figures"]["solutions"] == len(rows)
    right = {row.label: "2+2=5" in row.steps[1] for row in rows if "maybe" not in row.steps[1]}
    assert right and card["figures"]["over_critic"] == 0 and card["intervals"]["recall"][0] <= card["figures"]["recall"]
    assert set(card["seconds"]) == {"sampled", "labelled", "split", "trained", "benchmarked", "selected"}
    assert card["made from"]["sampled"]["samples"] == 4 and card["made from"]["trained"]["recipe"] == "genrm-4b"
    assert f"--genrm.judge serve --genrm.model {out}" in capsys.readouterr().out
    (out / "card.json").unlink()
    for file in out.iterdir():
        file.unlink()
    out.rmdir()
    command(given)  # removed, it is written again
    again = json.loads((out / "card.json").read_text())
    assert again["sha256"] == card["sha256"] and again["figures"] == card["figures"]


def test_a_budget_of_tokens_that_none_keeps_is_refused_with_the_table(asked, trained, tmp_path, capsys):
    given, _ = asked
    error = refused(capsys, [*given, "--mean-tokens", "99"])
    assert "--mean-tokens 99 excludes every checkpoint; the shortest critiques are step 0's with 100 tokens" in error
    assert not (tmp_path / "genrm").exists()


def test_a_judges_fault_is_asked_again_and_is_no_verdict(asked, trained, tmp_path, capsys):
    given, _ = asked
    command(given)
    whole = json.loads((tmp_path / "genrm" / "card.json").read_text())
    Judges.faults = 10
    command([*given, "--out", str(tmp_path / "faulty" / "genrm")])
    faulty = json.loads((tmp_path / "faulty" / "genrm" / "card.json").read_text())
    assert Judges.faults < 10  # witness
    assert faulty["figures"] == whole["figures"]
    assert [c["f1"] for c in faulty["selection"]] == [c["f1"] for c in whole["selection"]]


def test_what_stands_at_out_is_not_overwritten(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
        (folder / "model.safetensors").write_text(folder.name)
    with pytest.raises(ValueError, match=r"out exists and is not what was made here"):
        write(source, out, {})
    assert (out / "model.safetensors").read_text() == "out"


def test_a_base_model_is_asked_as_a_run_asks_it(tmp_path, monkeypatch):
    """It has no chat template: the served folder gets one that leaves the text as it is."""
    served = []
    monkeypatch.setattr(
        "soundrl.genrm.make.rows.JudgeServers",
        lambda serving, logs: nullcontext(served.append(serving) or SimpleNamespace(wait=lambda: 0, urls=["u"])),
    )
    starts = ROOT / "starts"
    own = Making(problems="x", policies=("x",), teacher=("a@http://h/v1",))
    with asked_at((str(starts / "policy"),), own, 60, tmp_path) as (name, urls):
        assert (name, urls) == ("genrm", ("u",))
    with asked_at((str(starts / "judge"),), own, 60, tmp_path):
        pass
    assert served[1].model == starts / "judge" and served[0].model != starts / "policy"
    files = {file.name for file in served[0].model.iterdir()}
    assert files - {file.name for file in (starts / "policy").iterdir()} == {"chat_template.jinja"}
    template = Template((served[0].model / "chat_template.jinja").read_text())
    assert template.render(messages=[{"role": "user", "content": "71+2-2?1\n"}]) == "71+2-2?1\n"


def test_the_worlds_teacher_slips_and_consensus_pays():
    made = world(200, 0)
    steps = [chains.steps(chains.demonstration(chains.parse(p.text), random.Random(p.id), True)) for p in made.problems]
    true = [truth(p.text, s) for p, s in zip(made.problems, steps, strict=True)]
    votes = [[careless(p.text, s, p.answer, f"{p.id}/{i}") for i in range(3)] for p, s in zip(made.problems, steps, strict=True)]
    labels = [[-1 if vote.step is None else vote.step for vote in three] for three in votes]
    wrong = sum(label != t for three, t in zip(labels, true, strict=True) for label in three) / 600
    agreed = [(three, t) for vote, three, t in zip(votes, labels, true, strict=True) if unanimous(vote).kind != "unknown"]
    assert SLIPS / 2 < wrong < 2 * SLIPS and sum(three[0] != t for three, t in agreed) <= 1 and 100 < len(agreed) < 180
    assert min(true) == -1 < max(true)
    assert made.split("58+7=65\n#5\n") == ("58+7=65", "#5")


def test_a_report_file_that_has_changed_is_seen(asked, trained, tmp_path, capsys):
    given, _ = asked
    row = {"id": "r", "problem": "Sum?", "steps": ["So 2+2=5."], "final_answer_correct": True, "label": 0}
    (tmp_path / "bench.json").write_text(json.dumps([row, row | {"id": "s", "steps": ["So 2+2=4."], "label": -1}]))
    given = [*given, "--report", "bench.json"]
    command(given)
    card = json.loads((tmp_path / "genrm" / "card.json").read_text())
    assert card["figures on bench"]["solutions"] == 2
    (tmp_path / "bench.json").write_text(json.dumps([row]))
    assert re.search(r"selected was made with report \{'bench.json': '\w+'\} \(now \{'bench.json': '\w+'\}\)", refused(capsys, given))


TRAINS = """
import os, pathlib, signal, time
def save(*_):
    time.sleep(0.3)
    pathlib.Path("saved").write_text("")
    os._exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path("pid.part").write_text(str(os.getpid()))
os.rename("pid.part", "pid")
time.sleep(1e6)
"""
ASKED = """
import signal, sys
from soundrl.genrm.make.training import guarded
signal.signal(signal.SIGTERM, signal.default_int_handler)
guarded([sys.executable, "-c", sys.argv[1]])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_ends_with_us_and_saves_its_state_where_it_is_asked_to(number, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ASKED, TRAINS], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.02)
    training = Path("/proc") / (tmp_path / "pid").read_text()
    assert training.exists()  # witness
    os.kill(process.pid, number)  # us alone
    process.wait()
    if number == signal.SIGTERM:  # it was waited for
        assert (tmp_path / "saved").exists() and not runs(training)
    while runs(training):
        time.sleep(0.02)
    assert (tmp_path / "saved").exists() == (number == signal.SIGTERM)


def test_a_run_that_was_stopped_is_not_taken_for_trained(tmp_path):
    """It has saved, and ends with status 0."""
    run, leaves = tmp_path / "run", [sys.executable, "-c", "import os, sys; os.makedirs(sys.argv[1])"]
    with pytest.raises(ValueError, match=r"/run was stopped before its end; the same command goes on"):
        to_its_end([*leaves, str(run / "underway")], run)
    to_its_end([*leaves, str(tmp_path / "other" / "policy")], tmp_path / "other")  # inverse


def runs(process: Path) -> bool:
    """Zombies do not."""
    try:
        return (process / "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
