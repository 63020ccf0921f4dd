"""Critic data: flaws planted into GSM8K's solutions, selection, and the sampled kind against scripted policies and a scripted teacher."""

import json
import random
import re

import pyarrow.json
import pytest
from fake_judge import MODEL, Handler, Server, hang, said

from soundrl.engine.recipes import ARITH_SOLUTIONS
from soundrl.fapo.data.files import load_prompts
from soundrl.fapo.records import Prompt, Verdict
from soundrl.fapo.verify.box import final_box
from soundrl.genrm.critic_data.critic_data import command, select
from soundrl.genrm.critic_data.gsm8k_flaws import KINDS, plant, sound
from soundrl.genrm.critic_data.labelled import Labelled, load_critic, load_labelled
from soundrl.genrm.pool import scorer
from soundrl.genrm.verdict import unanimous

NATALIA = Prompt(
    id="g:1",
    text="Natalia sold 48 clips in April and half as many in May. How many altogether?",
    answer="72",
    solution="In May she sold 48/2 = <<48/2=24>>24 clips.\nAltogether that is 48+24 = <<48+24=72>>72 clips.\n#### 72",
)


def test_each_kind_of_flaw_stands_where_it_says():
    rng = random.Random(0)
    true = sound(NATALIA).steps
    assert true == ("In May she sold 48/2 = 24 clips.", "Altogether that is 48+24 = 72 clips.", "The answer is \\boxed{72}.")
    for kind in KINDS:
        row = plant(NATALIA, kind, rng)
        assert row is not None and row.answer == "72" and "\\boxed{72}" in row.steps[-1] and "<<" not in "".join(row.steps)
        before, at = row.steps[: row.label], row.steps[row.label]
        assert before == true[: row.label] and at != true[row.label], kind
        if kind == "ignored":
            assert re.fullmatch(r"(In May she sold 48/2|Altogether that is 48\+24) = \d+ clips\.", at)
            assert row.steps[row.label + 1 :] == true[row.label + 1 :]
        if kind == "repaired":
            assert row.label == 0 and row.steps[1] == "Taking 24 for that, altogether that is 48+24 = 72 clips."
        if kind == "skipped":
            assert row.label == 0 and at == true[1]
        if kind == "guess":
            assert row.label == len(row.steps) - 1 == 1
    with pytest.raises(ValueError, match="unknown kind of flaw 'none'"):
        plant(NATALIA, "none", rng)
    assert plant(Prompt(id="x", text="?", answer="3", solution="It is three.\n#### 3"), "skipped", rng) is None


def test_all_of_gsm8k_can_be_planted(shared_data):
    prompts = load_prompts(shared_data / "gsm8k-test.jsonl", max_rows=300)
    rows = [row for prompt in prompts for kind in KINDS if (row := plant(prompt, kind, random.Random(prompt.id)))]
    assert len(rows) > 900  # most kinds fit most solutions
    for row in rows:
        box = final_box("\n\n".join(row.steps))
        assert box is not None and box.text == row.answer and 0 <= row.label < len(row.steps)


def row(problem: str, steps: str, label: int) -> Labelled:
    return Labelled(id="x", problem=problem, steps=tuple(steps.split()), label=label, answer="1")


def test_selection_counts_what_it_leaves_out():
    rows = [row("p", f"a{i}", 0) for i in range(3)] + [row("p", "fine", -1), row("p", "a0", 0), row("q", "b c", 0), row("q", "b c", 1)]
    kept, left = select(rows, 2, seed=0)
    assert sorted(r.label for r in kept) == [-1, 0] and left == {"duplicate": 2, "conflict": 1, "cap": 1, "balance": 1}
    assert len(kept) + sum(left.values()) == len(rows)
    assert select(rows, 2, seed=0)[0] == kept


def test_the_planted_command_writes_rows_that_everything_reads(shared_data, tmp_path, capsys):
    out = tmp_path / "critic.jsonl"
    command(["planted", "--problems", str(shared_data / "gsm8k-test.jsonl"), "--max-problems", "60", "--out", str(out)])
    assert "half of them flawed" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    labels = [r["reward_model"]["ground_truth"] for r in rows]
    assert len(rows) >= 100 and sum(label >= 0 for label in labels) * 2 == len(rows)
    assert rows[0].keys() == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
    table = pyarrow.json.read_json(out)  # what `datasets` reads with
    assert table.num_rows == len(rows) and str(table.schema.field("reward_model").type) == "struct<style: string, ground_truth: int64>"
    assert [int(prompt.answer) for prompt in load_critic(str(out))] == [r.label for r in load_labelled(str(out))] == labels


def test_unanimous():
    assert unanimous([Verdict.flawed(2)] * 3) == Verdict.flawed(2) and unanimous([Verdict.sound()]) == Verdict.sound()
    assert unanimous([Verdict.flawed(2), Verdict.flawed(1)]) == Verdict.unknown("split")
    assert unanimous([Verdict.flawed(2), Verdict.unknown("no_box")]) == Verdict.unknown("no_box")


def policy(handler: Handler, number: int) -> None:
    """Solves the problem; by the seed it is right or wrong, sound or flawed."""
    kind = handler.body["seed"] % 4 if "seed" in handler.body else 0
    text = [
        "Two and two.\n\nSo 2+2=4.\n\n\\boxed{4}",
        "Two.\n\nSo 2+2=5.\n\n\\boxed{4}",
        "\\boxed{5}",
        f"Hm {kind}.\n\nmaybe\n\n\\boxed{{4}}",
    ][kind]
    handler.send(200, said(text))


def teacher(handler: Handler, number: int) -> None:
    content = handler.body["messages"][0]["content"]
    index = 1 if "2+2=5" in content else handler.body.get("seed", 0) % 2 if "maybe" in content else -1
    handler.send(200, said(f"\\boxed{{{index}}}"))


def test_sampled_rows_need_a_right_answer_and_a_unanimous_teacher_and_are_not_asked_for_twice(tmp_path, capsys):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"{i}: 2+2?", "answer": "4"}) + "\n" for i in range(8)))
    servers = [Server(policy), Server(teacher)]
    out = tmp_path / "critic.jsonl"
    arguments = ["sampled", "--problems", str(problems), "--out", str(out), "--samples", "6", "--policy-urls", servers[0].url]
    arguments += ["--policy-models", MODEL, "--teacher-urls", servers[1].url, "--teacher-model", MODEL]
    try:
        command(arguments)
        text = capsys.readouterr().out
        first = out.read_bytes()
        assert "solutions wrong" in text and "labels split" in text  # witnesses: some were dropped for each reason
        rows = load_labelled(str(out))
        assert rows and {(r.label, "2+2=5" in r.steps[1]) for r in rows if "maybe" not in r.steps[1]} <= {(-1, False), (1, True)}
        # In which order they came changes nothing.
        work = out.with_name(out.name + ".work")
        head, *lines = work.read_text().splitlines(keepends=True)
        work.write_text("".join([head, *reversed(lines)]))
        command(arguments)
        assert out.read_bytes() == first
        work.write_text("".join([head, *lines]))
        asked = [len(server.bodies) for server in servers]
        # Killed in the middle of writing: what is known is not asked for again.
        lines = work.read_text().splitlines(keepends=True)
        work.write_text("".join(lines[:-2]) + lines[-1][:5])
        out.unlink()
        command(arguments)
        assert out.read_bytes() == first
        again = [len(server.bodies) - before for server, before in zip(servers, asked, strict=True)]
        assert again in ([1, 1 + 2 * 3], [1, 1 + 3])  # two labels were lost; two of one text are one question
        with pytest.raises(SystemExit) as ended:
            command([*arguments, "--votes", "5"])
        assert ended.value.code == 2 and "begun with other arguments" in capsys.readouterr().err
    finally:
        for server in servers:
            server.stop()


def test_planted_rows_of_the_world_are_training_rows_of_the_seed(tmp_path):
    rows = {}
    for seed in ("0", "1"):
        command(
            ["planted", "--problems", ARITH_SOLUTIONS, "--max-problems", "200", "--out", str(tmp_path / f"{seed}.jsonl"), "--seed", seed]
        )
        rows[seed] = {(row.problem, row.steps) for row in load_labelled(str(tmp_path / f"{seed}.jsonl"))}
        assert len(rows[seed]) > 100
    evaluated = load_labelled(ARITH_SOLUTIONS, max_rows=400)
    assert not {row.problem for row in evaluated} & {problem for problem, _ in rows["0"] | rows["1"]}
    assert len(rows["0"] & rows["1"]) < 20


@pytest.fixture
def sampled(tmp_path):
    """Arguments of `sampled` for eight problems, their policy, and a teacher whose script can be changed."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"{i}: 2+2?", "answer": "4"}) + "\n" for i in range(8)))
    servers = [Server(policy), Server(teacher)]
    words = ["sampled", "--problems", str(problems), "--out", str(tmp_path / "critic.jsonl"), "--samples", "6", "--votes", "1"]
    words += ["--policy-urls", servers[0].url, "--policy-models", MODEL, "--teacher-urls", servers[1].url, "--teacher-model", MODEL]
    yield words, servers, tmp_path / "critic.jsonl.work"
    for server in servers:
        server.stop()


def labels(work) -> list[str]:
    records = map(json.loads, work.read_text().splitlines()[1:])
    return [record["verdict"][0] for record in records if record["id"].startswith("label/")]


def test_a_teacher_that_was_down_is_asked_again(sampled, monkeypatch):
    monkeypatch.setattr(scorer, "FIRST_PAUSE", 0.01)
    words, (_, server), work = sampled
    server.script = lambda handler, number: teacher(handler, number) if number == 0 else handler.send(503, {})
    with pytest.raises(SystemExit):  # no row is left
        command([*words, "--concurrency", "1"])
    assert len(server.bodies) > 1 and labels(work) == []  # witness: it was asked
    server.script = teacher
    asked = len(server.bodies)
    command(words)
    assert len(labels(work)) > 8 and len(server.bodies) - asked > 8 and "unknown" not in labels(work)


DOWN = {
    "503": lambda handler: handler.send(503, {}),
    "reset": lambda handler: handler.reset(),
    "hang": lambda handler: hang(handler, 0),
}


@pytest.mark.parametrize("name", DOWN)
def test_a_policy_that_was_down_is_asked_again(sampled, monkeypatch, capsys, name):
    monkeypatch.setattr(scorer, "FIRST_PAUSE", 0.01)
    words, (server, _), work = sampled
    server.script = lambda handler, number: policy(handler, number) if number < 30 else DOWN[name](handler)
    command([*words, "--deadline", "3"])
    text = capsys.readouterr().out
    lost = int(re.search(r"solutions unreached: (\d+)", text)[1])
    assert lost >= 48 - 29 and work.read_text().count('"solution/') == 48 - lost  # witness; the first request was a trial
    server.script = policy
    asked = len(server.bodies)
    command(words)
    assert len(server.bodies) - asked == lost + 1 and "unreached" not in capsys.readouterr().out


def test_an_edited_problem_file_is_another_one(sampled, capsys):
    """Under the same name; what was made from the old one is not mixed in."""
    words, servers, work = sampled
    command(words)
    problems = work.with_name("problems.jsonl")
    before, asked = problems.read_text(), len(servers[0].bodies)
    problems.write_text(before.replace("7: 2+2?", "7: 3+1?"))
    with pytest.raises(SystemExit) as ended:
        command(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "begun with other arguments" in said and "(another problems_sha256)" in said
    assert len(servers[0].bodies) == asked
    problems.write_text(before)  # inverse
    command(words)
    assert len(servers[0].bodies) == asked + 1


def test_policies_and_teacher_are_sent_fields_of_their_own(sampled):
    words, servers, _ = sampled
    command([*words, "--body", '{"top_k": 7}', "--policy-body", '{"top_p": 0.5, "chat_template_kwargs": {"enable_thinking": false}}'])
    solved, labelled = ([body for body in server.bodies if body["max_tokens"] > 1] for server in servers)
    assert solved and all(body["top_p"] == 0.5 and not body["chat_template_kwargs"]["enable_thinking"] for body in solved)
    assert labelled and all(body["top_k"] == 7 and body["top_p"] == 1.0 for body in labelled)


def test_labels_are_written_as_they_come(sampled):
    """While most questions still wait for a place, what was answered stands on the disk."""
    words, (_, server), work = sampled
    written: list[int] = []

    def watching(handler: Handler, number: int) -> None:
        written.append(len(labels(work)))
        teacher(handler, number)

    server.script = watching
    command([*words, "--concurrency", "1"])
    assert len(written) > 10 and written[-1] >= len(written) - 4


def test_policies_have_a_token_of_their_own(sampled, monkeypatch):
    words, servers, _ = sampled
    monkeypatch.setenv("SOUNDRL_GENRM_TOKEN", "canary-teacher")
    monkeypatch.setenv("MY_POLICIES", "canary-policy")
    command([*words, "--policy-token-env", "MY_POLICIES"])
    assert [set(server.authorizations) for server in servers] == [{"Bearer canary-policy"}, {"Bearer canary-teacher"}]


def test_mistakes_end_in_one_line(tmp_path, capsys):
    for arguments, words in (
        (["planted", "--problems", str(tmp_path / "none.jsonl"), "--out", "x"], "no such file"),
        (
            [
                "sampled",
                "--problems",
                "x",
                "--out",
                "x",
                "--policy-urls",
                "a",
                "--policy-models",
                "b",
                "c",
                "--teacher-urls",
                "t",
                "--teacher-model",
                "m",
            ],
            "1 --policy-urls for 2",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            command(arguments)
        assert ended.value.code == 2 and words in capsys.readouterr().err
