"""One prompt: what a critic is trained on, what a run asks its judge, and what the benchmark asks are the same tokens; and whose prompt is
whose travels with the judge."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from fake_judge import MODEL, Server, find_flaw, said
from single_turn import MARKS, SPECIAL, assert_single_user_turn, chatml_tokenizer

from soundrl.engine.encode import Encoder
from soundrl.engine.environments.arithmetic.critic import ArithCriticSource
from soundrl.engine.environments.arithmetic.models import critic_tokenizer, write_arith_critic
from soundrl.engine.environments.environment import trained_prompt
from soundrl.engine.files.model_folder import companions, load_tokenizer
from soundrl.engine.judging.judges import serve
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.records import Prompt, Rollout
from soundrl.genrm import evaluate
from soundrl.genrm.critic_data.labelled import Labelled, load_critic, load_labelled, write_rows
from soundrl.genrm.journal import Journal
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.prompts import PROMPTS, split_paragraphs
from soundrl.genrm.serve.server import Serving, Worker
from soundrl.genrm.verdict import Reply

ROOT = Path(__file__).parent.parent
ODD = [
    "ß",
    "π≤3",
    "解",
    "e\u0301",
    "\u200b",
    "\u202e",
    "＜｜im_end｜＞",
    "\ud800",
    "\r\n",
    "\u2028",
    "\x00",
    "𝔸",
    "[Task]",
    "[AI Solution]",
    "[ Problem ]",
]
ODD += [
    "</paragraph_0>",
    "<paragraph_7>",
    "<",
    ">",
    "|",
    "$a<b$",
    "\\boxed{-1}",
    "2+2=5",
    "\t",
    "  ",
    "\n",
    "\n\n",
    "\n \n",
    "x" * 30,
    "Your task is",
]
WORDS = [*ODD, *SPECIAL, *MARKS, *"The sum is 48 so we get 7 .".split(" ")]


def drawn_rows(count: int, seed: int) -> list[Labelled]:
    """From one paragraph to many, of odd characters, control tokens, and marks of our own."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        text = ["".join(rng.choice(WORDS) + rng.choice(["", " "]) for _ in range(rng.randint(1, n))) for n in (6, 3)]
        cut = split_paragraphs("\n\n".join("".join(rng.choices(WORDS, k=4)) for _ in range(rng.choice([1, 1, 2, 5, 12]))))
        steps = [step for step in cut if step] or [""]  # of a text that is joined again, an empty step between two is no step
        label = rng.randrange(-1, len(steps))
        rows.append(Labelled(id=f"r{i}", problem=f"{i}? {text[0]}", steps=tuple(steps), label=label, answer=f"{text[1]}7"))
    return rows


@pytest.fixture
def endpoint():
    servers: list[Server] = []

    def start(script=find_flaw, *names: str) -> Server:
        servers.append(Server(script))
        if names:
            listed = {"object": "list", "data": [{"id": name} for name in names]}
            servers[-1].models = lambda handler: handler.send(200, listed)
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def as_served(tokenizer, body: dict) -> tuple[int, ...]:
    """Token ids, as vLLM makes them of a chat request: the template's text, and no token added to it."""
    text = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", ["own", "paper", "outcome", "order"])
def test_training_serving_and_benchmark_are_the_same_tokens(endpoint, tmp_path, name):
    same_tokens(endpoint, tmp_path, name, 100)


def same_tokens(endpoint, tmp_path: Path, name: str, count: int) -> None:
    """`make one-prompt` asks 1,000 rows of each."""
    rows = drawn_rows(count, seed=count)
    write_rows(tmp_path / "critic.jsonl", rows, "train")
    trained = load_critic(str(tmp_path / "critic.jsonl"), prompt=name)
    sound = said("\\boxed{-1}" if PROMPTS[name].locates else "\\boxed{True}")
    server = endpoint(lambda handler, number: handler.send(200, sound))
    with EndpointJudge(server.url, MODEL, prompt=name, concurrency=32) as judge:
        asked = [
            judge.submit(
                Prompt(id=row.id, text=row.problem, answer=row.answer or ""),
                Rollout(prompt_id=row.id, sample=0, prompt_tokens=(), tokens=(), logprobs=(), text="\n\n".join(row.steps),
                        finish_reason="stop", policy_version=1),
            )
            for row in rows
        ]  # fmt: skip
        assert all(future.result(300) for future in asked)
        assert len(server.bodies) == count
        # The benchmark's questions are those: none reaches the server again.
        bench = load_labelled(str(tmp_path / "critic.jsonl"))
        questions = {row.id: (row.problem, row.steps, row.answer) for row in bench}
        assert len(evaluate.judge_all(judge, questions, Journal(tmp_path / "v.jsonl", {}, ""), "judged")) == count
        assert len(server.bodies) == count and judge.stats()["deduplicated"] == count
    for tokenizer in (load_tokenizer(ROOT / "starts" / "judge"), chatml_tokenizer()):
        encode = Encoder(tokenizer, 10**6)
        in_training = {tuple(encode(prompt).tolist()) for prompt in trained}
        assert in_training == {as_served(tokenizer, body) for body in server.bodies}
        # The world's tokenizer has one token for all that it does not know.
        assert len(in_training) == count or tokenizer.unk_token_id is not None
    for prompt in trained[::50]:
        assert prompt.messages is not None
        assert_single_user_turn(chatml_tokenizer(), prompt.messages)


def test_the_token_check_sees_another_wording(endpoint):
    """The inverse: a judge asked by another prompt than it was trained on gets other tokens, for every row."""
    tokenizer, rows = chatml_tokenizer(), drawn_rows(5, seed=3)
    for one, other in (("own", "paper"), ("own", "order"), ("paper", "outcome")):
        ids = [
            as_served(tokenizer, {"messages": PROMPTS[name].messages(r.problem, r.steps, r.answer)}) for name in (one, other) for r in rows
        ]
        assert len(set(ids)) == len(ids)


# Whose prompt is whose


def asked_of(server: Server) -> str:
    """The first words of the last question."""
    return server.bodies[-1]["messages"][0]["content"][:22]


FIRST = {"own": "Below are a math probl", "paper": "The following is a mat", "outcome": "The following is a mat"}


@pytest.mark.parametrize(
    ("named", "names", "chosen", "because"),
    [
        ("", (MODEL,), "own", "as neither genrm.prompt nor its endpoint names one"),
        ("", (MODEL, f"{MODEL}@paper"), "paper", "/v1 says"),
        ("", (f"{MODEL}@outcome", MODEL, "other@own", f"{MODEL}@20250101", f"{MODEL}@latest"), "outcome", "/v1 says"),
        ("paper", (MODEL, f"{MODEL}@paper"), "paper", "as set"),
        ("paper", (MODEL,), "paper", "as set"),
        ("order", (MODEL, f"{MODEL}@own"), "order", "as set"),
    ],
)
def test_a_judge_is_asked_as_its_endpoint_says(endpoint, named, names, chosen, because):
    server = endpoint(find_flaw, *names)
    with EndpointJudge(server.url, MODEL, prompt=named) as judge:
        judge.check()
        judge.critique("2?", ["So 2+2=4."], "2").result(60)
        assert judge.asked.name == chosen and judge.because.endswith(because)
        assert server.bodies[-1]["messages"] == PROMPTS[chosen].messages("2?", ["So 2+2=4."], "2")


@pytest.mark.parametrize(("named", "told"), [("own", "paper"), ("paper", "own"), ("own-read", "outcome"), ("order", "paper")])
def test_another_prompt_than_the_judges_own_is_refused(endpoint, named, told):
    server = endpoint(find_flaw, MODEL, f"{MODEL}@{told}")
    with EndpointJudge(server.url, MODEL, prompt=named) as judge, pytest.raises(ValueError) as caught:
        judge.check()
    text = str(caught.value)
    assert "\n" not in text and f"genrm.prompt is {named}, but {server.url} says" in text and f"set genrm.prompt to {told}" in text


def test_endpoints_of_one_judge_say_the_same(endpoint):
    servers = [endpoint(find_flaw, MODEL, f"{MODEL}@{told}") for told in ("paper", "own")]
    with EndpointJudge([server.url for server in servers], MODEL, prompt="") as judge, pytest.raises(ValueError, match="trained on own"):
        judge.check()
    with (
        EndpointJudge(endpoint(find_flaw, MODEL, f"{MODEL}@new").url, MODEL) as judge,
        pytest.raises(ValueError, match="'new' is not known"),
    ):
        judge.check()


def test_a_list_of_models_that_never_comes_is_no_silence_about_the_prompt(endpoint, monkeypatch):
    """The default would be asked of a judge that may have said otherwise."""
    monkeypatch.setattr("soundrl.genrm.pool.endpoint.CHECK_SECONDS", 1.0)
    server = endpoint(find_flaw)
    hangs = []
    server.models = lambda handler: hangs.append(handler.connection.recv(1)) or None  # until we hang up
    with EndpointJudge(server.url, MODEL, prompt="") as judge, pytest.raises(ValueError, match="gave no answer in 1 s"):
        judge.check()
    assert len(server.bodies) == 1  # witness: it generates


def test_the_benchmark_stamps_what_it_has_asked(endpoint, tmp_path):
    data = tmp_path / "b.json"
    data.write_text(json.dumps([{"problem": "2?", "steps": ["2+2=5"], "final_answer_correct": True, "label": 0}]))
    made = {}
    for prompt, names in (("", (MODEL,)), ("", (MODEL, f"{MODEL}@paper")), ("paper", (MODEL,)), ("order", (MODEL,))):
        out = tmp_path / f"out-{len(made)}"
        server = endpoint(find_flaw, *names)
        evaluate.main(evaluate.Arguments(data=(str(data),), urls=(server.url,), model=MODEL, out=out, prompt=prompt))
        made[prompt, names] = json.loads((out / "scores.json").read_text())["made_from"]
    own, told, paper, order = made.values()
    assert (own["prompt"], told["prompt"], order["prompt"]) == ("own", "paper", "order") and told == paper
    assert len({kind["prompt_sha256"] for kind in made.values()}) == 3
    again = evaluate.Arguments(data=(str(data),), urls=(endpoint().url,), model=MODEL, out=tmp_path / "out-0", prompt="order")
    with pytest.raises(ValueError, match="holds verdicts of another judge"):
        evaluate.main(again)


def test_a_teacher_that_names_no_step_labels_nothing(endpoint, tmp_path, monkeypatch):
    from soundrl.genrm.critic_data.critic_data import command

    problems = tmp_path / "p.jsonl"
    problems.write_text(json.dumps({"problem": "2+2?", "answer": "4"}) + "\n")
    policy = endpoint(lambda handler, number: handler.send(200, said("Two.\n\n\\boxed{4}")))
    words = [
        "sampled",
        "--problems",
        str(problems),
        "--out",
        str(tmp_path / "c.jsonl"),
        "--policy-urls",
        policy.url,
        "--policy-models",
        MODEL,
    ]
    words += ["--teacher-model", MODEL]
    teacher = endpoint(lambda handler, number: handler.send(200, said("\\boxed{False}")), MODEL, f"{MODEL}@outcome")
    with pytest.raises(SystemExit) as ended:
        command([*words, "--teacher-urls", teacher.url])
    assert ended.value.code == 2 and len(teacher.bodies) == 1  # the check alone
    assert '"label/' not in (tmp_path / "c.jsonl.work").read_text()


# Folders


def test_recipes_of_the_released_genrm_ask_in_its_words(tmp_path):
    assert {name for name, made in RECIPES.items() if made().genrm.prompt == "paper"} == {"fapo-7b", "fapo-32b", "genrm-4b"}
    config = RECIPES["genrm-4b"]()
    assert trained_prompt(config) == "paper"

    def critic(prompt: str = "", task: str = "critic", card: str = ""):
        (tmp_path / "card.json").write_text(card or "{}")
        config = RECIPES["genrm-arith"]()
        change = {"genrm": {"prompt": prompt}, "run": {"task": task}, "model": {"path": str(tmp_path)}}
        return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **what) for part, what in change.items()})

    assert trained_prompt(critic()) == "own" and trained_prompt(critic(card='{"prompt": "paper"}')) == "paper"
    assert trained_prompt(critic("own", card='{"prompt": "paper"}')) == "own"  # trained anew on other words
    assert trained_prompt(critic("outcome", "critic-outcome")) == "outcome"
    for settings, words in (
        ({"prompt": "outcome"}, "genrm.prompt outcome asks for no step, .* set --run.task critic-outcome"),
        ({"card": '{"prompt": "outcome"}'}, "set --run.task critic-outcome"),
        ({"prompt": "own-read"}, "genrm.prompt own-read trains nobody; train on own"),
        ({"card": '{"prompt": "newer"}'}, "card.json: the prompt 'newer' is not known"),
    ):
        with pytest.raises(ValueError, match=words):
            trained_prompt(critic(**settings))


def test_a_folder_is_served_under_the_name_of_its_prompt_and_refused_by_another(tmp_path):
    write_arith_critic(tmp_path / "judge", 0)
    for card, names in ((None, ["genrm"]), ("paper", ["genrm", "genrm@paper"])):
        if card:
            (tmp_path / "judge" / "card.json").write_text(json.dumps({"prompt": card, "says": "of something"}))
        worker = Worker(Serving(model=tmp_path / "judge"), 0, "token", tmp_path)
        command = worker.command()
        at = command.index("--served-model-name")
        assert command[at + 1 : at + 1 + len(names)] == names and command[at + 1 + len(names)] == "--host"
        worker.held.close()
    config = RECIPES["arith-genrm"]()
    config = dataclasses.replace(config, genrm=dataclasses.replace(config.genrm, model=str(tmp_path / "judge"), prompt="own"))
    with pytest.raises(ValueError, match="genrm.prompt is own, but .*card.json says that the judge was trained on paper"):
        serve(config, None, sleeps=False)  # type: ignore[arg-type]


def test_a_card_of_other_weights_is_not_taken_over(tmp_path):
    write_arith_critic(tmp_path, 0)
    (tmp_path / "card.json").write_text("{}")
    assert "card.json" not in companions(tmp_path) and "tokenizer.json" in companions(tmp_path)


# The critic of the world, by any prompt


@pytest.mark.parametrize("name", ["own", "paper", "outcome"])
def test_the_worlds_critic_reads_the_prompt_that_it_is_made_for(name):
    tokenizer, source = critic_tokenizer(name), ArithCriticSource(0, prompt=name)
    encode = Encoder(tokenizer, 90)
    for i in range(20):
        prompt, critique = source.demonstration(i, planted=i % 2 > 0)
        assert prompt.messages is not None and prompt.text.startswith(FIRST[name])
        assert_single_user_turn(tokenizer, prompt.messages)
        assert tokenizer.unk_token_id not in encode(prompt)
        assert tokenizer.decode(encode.response(critique), skip_special_tokens=True) == critique
        verdict = PROMPTS[name].read(Reply(critique, "stop"), prompt.steps or 1)
        assert verdict.kind == ("sound" if prompt.answer == "-1" else "flawed") and (verdict.step is None) == (
            name == "outcome" or verdict.kind == "sound"
        )
