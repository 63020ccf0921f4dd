"""A verdict read off the probabilities of the next tokens, and the majority of judges that name no step."""

import json
import math

import pytest
from fake_judge import MODEL, Handler, Server, said
from hypothesis import given
from hypothesis import strategies as st

from soundrl.fapo.records import Verdict
from soundrl.genrm import reading
from soundrl.genrm.critic_data.labelled import Labelled
from soundrl.genrm.pool.endpoint import parsed
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.prompts import PROMPTS
from soundrl.genrm.scores import score
from soundrl.genrm.task import critic_reward
from soundrl.genrm.verdict import BAD_INDEX, CUT_OFF, NO_BOX, SEVERAL, Place, majority, parse_outcome, unanimous


def places(*tokens: tuple[str, dict[str, float]]) -> list[Place]:
    return [Place(token, shares) for token, shares in tokens]


INDEX = [
    # P(sound) against all indices together: the likeliest token alone may be an index, and the verdict sound all the same
    (places(("-", {"-": 0.45, "1": 0.25, "0": 0.2})), 3, Verdict.sound(), 0.5),
    (places(("-", {"-": 0.4, "1": 0.3, "0": 0.3})), 3, Verdict.flawed(1), 0.4),
    (places(("2", {"2": 0.6, "-": 0.4})), 3, Verdict.flawed(2), 0.4),
    # An index that no paragraph has is no verdict, and no doubt about one.
    (places(("9", {"9": 0.4, "-": 0.35, "1": 0.2})), 3, Verdict.sound(), 0.35 / 0.55),
    (places(("9", {"9": 0.8, "-": 0.2})), 3, Verdict.unknown(NO_BOX), None),
    (places(("?", {"?": 0.9, "1": 0.1})), 3, Verdict.unknown(NO_BOX), None),
    ([], 3, Verdict.unknown(NO_BOX), None),
    # A digit that begins a longer index as well is told by what follows it; cut there, the flaw is nowhere.
    (places(("1", {"1": 0.9, "-": 0.1}), ("2", {"2": 1.0}), ("}", {"}": 1.0})), 20, Verdict.flawed(12), 0.1),
    (places(("1", {"1": 0.9, "-": 0.1}), ("}", {"}": 1.0})), 20, Verdict.flawed(1), 0.1),
    (places(("1", {"1": 0.9, "-": 0.1})), 20, Verdict.flawed(None), 0.1),
    (places(("1", {"1": 0.9, "-": 0.1})), 10, Verdict.flawed(1), 0.1),
    (places(("0", {"0": 0.9, "-": 0.1})), 20, Verdict.flawed(0), 0.1),
    (places(("12", {"12": 0.9, "-1": 0.1})), 20, Verdict.flawed(12), 0.1),
    (places(("12}", {"12}": 0.8, "-1}": 0.2})), 200, Verdict.flawed(12), 0.2),
    (places(("-", {"-": 0.4, "1": 0.6}), ("1", {"1": 1.0})), 20, Verdict.flawed(None), 0.4),
    # The brace was left to the judge: `{-` is one token of many tokenizers.
    (places(("{", {"{": 0.7, "{-": 0.3}), ("0", {"0": 0.9, "-": 0.1})), 3, Verdict.flawed(0), 0.37),
    (places(("{-", {"{-": 0.8, "{": 0.2}), ("1", {"1": 1.0})), 3, Verdict.sound(), 1.0),
    (places((" ", {" ": 0.9, "1": 0.1}), ("-", {"-": 1.0})), 3, Verdict.sound(), 0.9),
    (places(("-2", {"-2": 0.7, "1": 0.3})), 3, Verdict.unknown(NO_BOX), None),
]


@pytest.mark.parametrize(("tokens", "paragraphs", "verdict", "share"), INDEX)
def test_the_verdicts_share_decides(tokens, paragraphs, verdict, share):
    found = reading.verdict(tokens, paragraphs)
    assert found == verdict and found.critique == ("" if share is None else f"P(sound) {share:.3f}")


OUTCOME = [
    (places(("True", {"True": 0.6, "False": 0.3})), Verdict.sound(), 2 / 3),
    (places(("Tr", {"Tr": 0.4, "Fal": 0.5})), Verdict.flawed(None), 4 / 9),
    (places(("false", {"false": 0.9, "T": 0.1})), Verdict.flawed(None), 0.1),
    (places(("1", {"1": 0.9, "True": 0.1})), Verdict.unknown(NO_BOX), None),
]


@pytest.mark.parametrize(("tokens", "verdict", "share"), OUTCOME)
def test_true_against_false(tokens, verdict, share):
    found = reading.verdict(tokens, 3, outcome=True)
    assert found == verdict and found.critique == ("" if share is None else f"P(sound) {share:.3f}")


TOKENS = st.sampled_from(["-", "-1", "-1}", "{", "{-", "{1", " ", "0", "1", "2", "12", "1}", "}", "x", "True", "", "٣", "-2", "{-1}"])


@given(st.lists(st.tuples(TOKENS, st.dictionaries(TOKENS, st.floats(0, 1), max_size=5)), max_size=4), st.integers(1, 25), st.booleans())
def test_whatever_comes_there_is_one_verdict_within_range(tokens, paragraphs, outcome):
    found = reading.verdict(places(*tokens), paragraphs, outcome)
    assert found.kind in ("sound", "flawed", "unknown") and (found.step is None or 0 <= found.step < paragraphs)
    assert (found.critique == "") == (found.kind == "unknown")


# Through an endpoint


def chat(text: str, tokens: list[tuple[str, dict[str, float]]]) -> dict:
    content = [
        {"token": t, "logprob": math.log(s[t]), "top_logprobs": [{"token": o, "logprob": math.log(p), "bytes": []} for o, p in s.items()]}
        for t, s in tokens
    ]
    reply = said(text, "length")
    reply["choices"][0]["logprobs"] = {"content": content}
    return reply


@pytest.fixture
def endpoint():
    servers: list[Server] = []

    def start(script) -> Server:
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


SPELLED = {
    "\\boxed{": {"\\boxed{-1}": ["\\boxed{", "-", "1", "}"], "\\boxed{0}": ["\\boxed{", "0", "}"]},
    "\\boxed": {"\\boxed{-1}": ["\\", "boxed", "{-", "1", "}"], "\\boxed{0}": ["\\", "boxed", "{", "0", "}"]},
}
READ = {
    "\\boxed{": [("-", {"-": 0.2, "1": 0.7})],
    "\\boxed": [("{", {"{": 0.8, "{-": 0.2}), ("1", {"1": 1.0})],
}


@pytest.mark.parametrize("begun", [*SPELLED, "untold"])
def test_the_judges_turn_is_begun_as_its_tokenizer_spells_it(endpoint, begun, caplog):
    def script(handler: Handler, number: int) -> None:
        if handler.path != "/tokenize":
            return handler.send(200, chat("", READ.get(begun, READ["\\boxed{"])))
        spelled = SPELLED.get(begun, {}).get(handler.body["prompt"])
        return handler.send(200, {"tokens": [], "token_strs": spelled}) if spelled else handler.send(404, {})

    server = endpoint(script)
    with EndpointJudge(server.url, MODEL, prompt="own-read") as judge:
        judge.check()
        verdict = judge.critique("2?", ["Start.", "So 2+2=5."], "4").result(60)
        assert verdict == Verdict.flawed(1) and verdict.critique == f"P(sound) {0.2 if begun == chr(92) + 'boxed' else 0.2 / 0.9:.3f}"
    body = server.bodies[-1]
    assert body["messages"][:-1] == PROMPTS["own"].messages("2?", ["Start.", "So 2+2=5."], "4")
    assert body["messages"][-1] == {"role": "assistant", "content": "\\boxed{" if begun == "untold" else begun}
    assert (body["continue_final_message"], body["add_generation_prompt"], body["logprobs"]) == (True, False, True)
    assert 1 < body["max_tokens"] <= 4 and body["temperature"] == 0
    assert ("does not tell how it spells" in caplog.text) == (begun == "untold")


def test_a_tokenizer_without_a_common_beginning_is_refused(endpoint):
    def script(handler: Handler, number: int) -> None:
        tokens = list(handler.body["prompt"]) if number % 2 else [handler.body.get("prompt", "")]
        handler.send(200, {"token_strs": tokens} if handler.path == "/tokenize" else chat("", READ["\\boxed{"]))

    with (
        EndpointJudge(endpoint(script).url, MODEL, prompt="paper-read") as judge,
        pytest.raises(ValueError, match="no beginning in common"),
    ):
        judge.check()


def test_reading_has_one_vote():
    for more in ({"votes": 3, "temperature": 0.5}, {"temperature": 0.5}):
        with pytest.raises(ValueError, match="own-read reads probabilities, which every vote repeats; set genrm.sampling 0 1"):
            EndpointJudge("http://127.0.0.1:9", MODEL, prompt="own-read", **more)


ENTRY = {"token": "1", "logprob": -0.1, "top_logprobs": [{"token": "1", "logprob": -0.1}]}
NO_PLACES = [None, {}, [], {"content": None}, {"content": {}}, {"content": [3]}, {"content": [ENTRY | {"token": 3}]}]
NO_PLACES += [
    {"content": [ENTRY | {"top_logprobs": top}]} for top in (None, [3], [{"token": [], "logprob": -1}], [{"token": "x", "logprob": "0"}])
]
NO_PLACES += [{"content": [ENTRY | {"top_logprobs": [{"token": "x", "logprob": 2.0}]}]}, {"content": [{**ENTRY, "logprob": None}]}]


@pytest.mark.parametrize("logprobs", NO_PLACES)
def test_probabilities_of_a_wrong_form_are_none(logprobs):
    reply = said("1")
    reply["choices"][0]["logprobs"] = logprobs
    assert parsed(json.dumps(reply).encode())[0].places == ()
    reply["choices"][0]["logprobs"] = {"content": [ENTRY]}  # the inverse
    (place,) = parsed(json.dumps(reply).encode())[0].places
    assert place.token == "1" and place.shares == {"1": pytest.approx(math.exp(-0.1))}


# Judges that say whether, and not where

WORDS = [
    ("\\boxed{True}", Verdict.sound()),
    ("so \\boxed{ false }", Verdict.flawed(None)),
    ("\\boxed{\\text{False}}", Verdict.flawed(None)),
]
WORDS += [
    ("\\boxed{-1}", Verdict.unknown(BAD_INDEX)),
    ("\\boxed{True or False}", Verdict.unknown(SEVERAL)),
    ("True", Verdict.unknown(NO_BOX)),
]
WORDS += [("\\boxed{Truely}", Verdict.unknown(BAD_INDEX)), ("\\boxed{True} or \\boxed{False}", Verdict.unknown(SEVERAL))]
WORDS += [("<think>\\boxed{True}", Verdict.unknown(NO_BOX)), ("<think>\\boxed{True}</think>\\boxed{False}", Verdict.flawed(None))]


@pytest.mark.parametrize(("reply", "verdict"), WORDS)
def test_the_outcome_prompts_reply(reply, verdict):
    assert parse_outcome(reply, "stop") == verdict and parse_outcome(reply, "length") == Verdict.unknown(CUT_OFF)


def test_a_flaw_without_a_step_is_a_verdict_everywhere():
    nowhere = Verdict.flawed(None)
    assert majority([nowhere, nowhere, Verdict.sound()]) == nowhere and unanimous([nowhere, nowhere]) == nowhere
    assert majority([nowhere, nowhere, Verdict.flawed(2)]) == Verdict.flawed(2)  # the only one that was named
    assert unanimous([nowhere, Verdict.flawed(2)]) == Verdict.unknown("split")
    assert critic_reward(1, nowhere, 3) == critic_reward(1, nowhere, 3, process=False) == 1.0 and critic_reward(-1, nowhere, 3) == -1.0
    rows = [Labelled(id=str(label), problem="", steps=("a", "b"), label=label) for label in (-1, 0)]
    found = {name: value.value for name, value in score(rows, [Verdict.sound(), nowhere], resamples=10).items()}
    assert (found["error_accuracy"], found["f1"]) == (0.0, 0.0)
    assert found["precision"] == found["recall"] == found["flawed_f1"] == found["coverage"] == 1.0


@pytest.mark.parametrize("name", ["own", "paper", "outcome", "order"])
def test_the_majority_votes_by_every_prompt(endpoint, name):
    flawed, sound = ("\\boxed{1}", "\\boxed{-1}") if PROMPTS[name].locates else ("\\boxed{False}", "\\boxed{True}")
    server = endpoint(lambda handler, number: handler.send(200, said(sound if number == 1 else flawed)))
    with EndpointJudge(server.url, MODEL, prompt=name, votes=3, temperature=0.5) as judge:
        verdict = judge.critique("2?", ["Start.", "So 2+2=5."], None).result(60)
    assert verdict == Verdict.flawed(1 if PROMPTS[name].locates else None)
    assert sorted(verdict.votes) == sorted(["flawed 1" if PROMPTS[name].locates else "flawed"] * 2 + ["sound"])
